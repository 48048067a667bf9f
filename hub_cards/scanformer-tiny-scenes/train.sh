#!/usr/bin/env bash
# Trains a model like the one in this folder, from the repository's root, with `pip install -c constraints.txt -e ".[train]"`:
#
#     bash hub_cards/scanformer-tiny-scenes/train.sh outputs/scanformer-tiny-scenes
#
# Twenty-seven hours on two CPU cores, by the progress bars of the stages, and another seven minutes for stages 9 and 10
# on one NVIDIA H200 with 16 CPU cores; a CPU alone would take half a day for these two. The weights in this folder went through
# these stages; their third, fourth and tenth stage were the first steps of longer schedules, in which the learning rate had
# begun to fall, the tenth's to 13 % of its peak. Stages 12 to 31 ran on a CPU with matrix units for bf16.
set -euo pipefail
out=${1:-outputs/scanformer-tiny-scenes}

stage() { # name, start, and what differs
    local name=$1 start=$2
    shift 2
    python examples/run_visual_grounding.py --model_name_or_path "$out/$start" --output_dir "$out/$name" \
        --dataset scenes --longest_edge 128 --mixed_precision bf16 --attn_implementation eager \
        --eval_steps 500 --max_eval_samples 200 "$@"
}

# Up to stage 16 there was no loss of the patches' boxes; with it, these stages would need fewer steps.
python -m examples.scenes.create_model --output_dir "$out/untrained" --config_overrides patch_box_loss_coefficient=0.0
# Every patch is read: language and places meet.
stage 1 untrained --dataset_level easy --seed 0 --max_train_steps 2000 --learning_rate 1e-3 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 400 --selection_warmup_steps 2000
# Four expressions about each picture, so that words tell its objects apart.
stage 2 1 --dataset_level basic --expressions_per_scene 4 --seed 2 --max_train_steps 1500 --learning_rate 1e-3 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 100 --selection_warmup_steps 1500
stage 3 2 --dataset_level primer --expressions_per_scene 4 --seed 3 --max_train_steps 600 --learning_rate 1e-3 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 50 --selection_warmup_steps 600
# The selection is switched on.
stage 4 3 --dataset_level primer --expressions_per_scene 4 --seed 4 --max_train_steps 500 --learning_rate 1e-3 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 50 --selection_anneal_steps 100 --selection_threshold 0.4
stage 5 4 --dataset_level primer --expressions_per_scene 4 --seed 5 --max_train_steps 2700 --learning_rate 1.2e-3 \
    --lr_scheduler_type linear --num_warmup_steps 50 --per_device_train_batch_size 64 --selection_threshold 0.4

# Smaller patches: each shows one thing rather than several, and only the boxes have to be learned again.
python -m conversion.resize_pyramid "$out/5" "$out/5-finer" --patch_size 8
stage 6 5-finer --dataset_level primer --expressions_per_scene 4 --seed 21 --max_train_steps 1500 --learning_rate 7e-4 \
    --lr_scheduler_type linear --num_warmup_steps 50 --per_device_train_batch_size 64 --selection_threshold 0.4 \
    --mixed_precision no --attn_implementation sdpa
# Now words other than colours count as well.
stage 7 6 --dataset_level basic --expressions_per_scene 4 --seed 22 --max_train_steps 1500 --learning_rate 7e-4 \
    --lr_scheduler_type linear --num_warmup_steps 30 --per_device_train_batch_size 64 --selection_threshold 0.4 \
    --mixed_precision no --attn_implementation sdpa

# Larger pictures and patches again, coarse to begin with: more than colours is told apart.
python -m conversion.resize_pyramid "$out/7" "$out/7-larger" --patch_size 16 --longest_edge 512
stage 8 7-larger --dataset_level easy --expressions_per_scene 8 --seed 31 --max_train_steps 4000 --learning_rate 1.2e-3 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 100 --per_device_train_batch_size 128 \
    --longest_edge 512 --selection_threshold 1.0
# Many samples, every patch read.
stage 9 8 --dataset_level easy --expressions_per_scene 8 --seed 41 --max_train_steps 2250 --learning_rate 1.5e-3 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 50 --per_device_train_batch_size 256 \
    --longest_edge 256 --selection_threshold 0.4 --selection_warmup_steps 2250 --attn_implementation sdpa \
    --dataloader_num_workers 15
stage 10 9 --dataset_level easy --expressions_per_scene 8 --seed 43 --max_train_steps 2000 --learning_rate 1.5e-3 \
    --lr_scheduler_type linear --num_warmup_steps 30 --per_device_train_batch_size 256 \
    --longest_edge 256 --selection_warmup_steps 2000 --attn_implementation sdpa --dataloader_num_workers 15
# The selection is switched on again.
stage 11 10 --dataset_level easy --expressions_per_scene 8 --seed 51 --max_train_steps 1500 --learning_rate 5e-4 \
    --lr_scheduler_type linear --num_warmup_steps 30 --per_device_train_batch_size 64 --longest_edge 256 \
    --selection_anneal_steps 300

# The full benchmark, on two processes. The C library would give the memory of every batch back to the system and ask for it
# again, which takes up to a third of the time; these settings let it keep what it has.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
stage_of_two() { # name, start, options of the launcher, and what differs
    local name=$1 start=$2 launcher=$3
    shift 3
    # the launcher's options are several words
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=1 accelerate launch --cpu --num_processes 2 --mixed_precision bf16 $launcher \
        examples/run_visual_grounding.py --model_name_or_path "$out/$start" --output_dir "$out/$name" --dataset scenes \
        --dataset_level standard --expressions_per_scene 8 --mixed_precision bf16 --attn_implementation eager \
        --max_eval_samples 200 "$@"
}
compiled="--dynamo_backend inductor --dynamo_use_regional_compilation --dynamo_use_dynamic"
stage_of_two 12 11 "$compiled" --longest_edge 256 --seed 61 --max_train_steps 1300 --learning_rate 1e-3 \
    --lr_scheduler_type linear --num_warmup_steps 50 --per_device_train_batch_size 64 --eval_steps 1000
# A batch is padded to the sample that reads most: two of 32 take less than one of 64.
compiled_stage() { # name, start, and what differs
    stage_of_two "$1" "$2" "$compiled" --longest_edge 256 --per_device_train_batch_size 32 \
        --gradient_accumulation_steps 2 --eval_steps 3000 "${@:3}"
}
compiled_stage 13 12 --seed 71 --max_train_steps 500 --learning_rate 1e-3 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 50
compiled_stage 14 13 --seed 72 --max_train_steps 900 --learning_rate 5e-4 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 30
# With a fourth scale, for small things. It gains too little yet for what it costs, and is cut off again: nothing earlier
# attends to it, so the other three stay what they became.
python -m conversion.resize_pyramid "$out/14" "$out/14-deeper" --num_scales 4
stage_of_two 15 14-deeper "" --longest_edge 512 --seed 73 --max_train_steps 290 --learning_rate 5e-4 \
    --lr_scheduler_type linear --num_warmup_steps 20 --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 4 --eval_steps 3000
python -m conversion.resize_pyramid "$out/15" "$out/16" --num_scales 3
# The patches on the target are asked for its box, too. The weights here went through stage 17 on one process, in four batches
# of 32 a step.
compiled_stage 17 16 --seed 81 --max_train_steps 250 --learning_rate 5e-4 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 30 --config_overrides patch_box_loss_coefficient=3.0
compiled_stage 18 17 --seed 82 --max_train_steps 700 --learning_rate 5e-4 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 10
compiled_stage 19 18 --seed 83 --max_train_steps 1300 --learning_rate 5e-4 \
    --lr_scheduler_type linear --num_warmup_steps 10
# Colours give too much away: objects alike but for one attribute, and orders and negation among them; then all again.
compiled_stage 20 19 --dataset_level contrasts --seed 84 --max_train_steps 600 --learning_rate 5e-4 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 30
compiled_stage 21 20 --seed 85 --max_train_steps 1350 --learning_rate 5e-4 \
    --lr_scheduler_type linear --num_warmup_steps 30
# Shapes are learned far sooner in small pictures, and carry over to larger ones; contrasts are learned no sooner (stage 24).
# Between 21 and 22, the weights here were also shown 45,000 expressions of the same level at 256 pixels, which changed next to
# nothing. Stages 23 and 24 were the first steps of longer ones at a constant learning rate.
stage_of_two 22 21 "$compiled" --longest_edge 128 --dataset_level shapes --expressions_per_scene 4 --seed 87 \
    --max_train_steps 1500 --learning_rate 7e-4 --lr_scheduler_type linear --num_warmup_steps 30 \
    --per_device_train_batch_size 64 --validation_split ""
compiled_stage 23 22 --dataset_level contrasts --seed 88 --max_train_steps 500 --learning_rate 5e-4 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 30
stage_of_two 24 23 "$compiled" --longest_edge 128 --dataset_level contrasts --expressions_per_scene 4 --seed 89 \
    --max_train_steps 900 --learning_rate 5e-4 --lr_scheduler_type constant_with_warmup --num_warmup_steps 30 \
    --per_device_train_batch_size 64 --validation_split ""
compiled_stage 25 24 --seed 90 --max_train_steps 1500 --learning_rate 5e-4 \
    --lr_scheduler_type linear --num_warmup_steps 30
# Once more, and at last larger pictures, for small things: little has to be learned again. Stage 27 was the first steps of a
# longer one at a constant learning rate, and stage 28 of one of 2100 steps, whose rate had fallen to two thirds.
stage_of_two 26 25 "$compiled" --longest_edge 128 --dataset_level shapes --expressions_per_scene 4 --seed 91 \
    --max_train_steps 1200 --learning_rate 7e-4 --lr_scheduler_type linear --num_warmup_steps 30 \
    --per_device_train_batch_size 64 --validation_split ""
compiled_stage 27 26 --dataset_level contrasts --seed 92 --max_train_steps 300 --learning_rate 5e-4 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 30
compiled_stage 28 27 --seed 93 --max_train_steps 750 --learning_rate 5e-4 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 30
compiled_stage 29 28 --longest_edge 384 --seed 94 --max_train_steps 1400 --learning_rate 4e-4 \
    --lr_scheduler_type linear --num_warmup_steps 30
# The same again with larger pictures; stage 30 was the first steps of a longer one at a constant learning rate. The threshold
# of the selection rises: what is read for it no longer gains anything.
compiled_stage 30 29 --longest_edge 384 --dataset_level contrasts --seed 95 --max_train_steps 300 --learning_rate 5e-4 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 30
compiled_stage 31 30 --longest_edge 384 --seed 96 --max_train_steps 2600 --learning_rate 5e-4 \
    --lr_scheduler_type linear --num_warmup_steps 30 --selection_threshold 0.5
# The weights of stage 31 read 448 pixels better than 384 without having seen any; this stage ran on a CPU without units for bf16.
compiled_stage 32 31 --longest_edge 448 --seed 97 --max_train_steps 700 --learning_rate 4e-4 \
    --lr_scheduler_type linear --num_warmup_steps 30 --mixed_precision no
# So did the next two; in stage 34, nearly half of the pictures were veiled in gray, for the sake of nights and fogs. What that
# costs by day, the mean of the weights wins back. Up to commit af7fb3d, a veil was drawn for every expression about a picture.
compiled_stage 33 32 --longest_edge 448 --dataset_level contrasts --seed 98 --max_train_steps 200 --learning_rate 4e-4 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 30 --mixed_precision no
compiled_stage 34 33 --longest_edge 448 --seed 99 --max_train_steps 620 --learning_rate 4e-4 \
    --lr_scheduler_type linear --num_warmup_steps 30 --mixed_precision no --augment veil
python -m conversion.interpolate_weights "$out/32" "$out/34" "$out/35" --share 0.75
# What every patch shows, and which part it plays, is now learned from the scene graphs: the stages before knew nothing of them.
# Stage 36 was the first steps of longer ones, whose rate had fallen to seven tenths, with a weight of 35 for roles, of which
# --scene_supervision 0.25 now makes 135. In stage 37 the model begins to tell textures and shapes; stage 38 brings veils again.
# By themselves these models are worse than stage 35's; half of it and half of stage 39 was shipped for a while.
supervised_stage() { # name, start, and what differs
    stage_of_two "$1" "$2" "" --expressions_per_scene 2 --validation_split "" --mixed_precision no --attn_implementation sdpa \
        --per_device_train_batch_size 32 --scene_supervision 1 --optimizer muon --ema_decay 0.99 --lr_scheduler_type linear \
        "${@:3}"
}
supervised_stage 36 35 --longest_edge 384 --dataset_level contrasts+standard+standard --expressions_per_scene 4 --seed 103 \
    --max_train_steps 800 --learning_rate 1e-3 --lr_scheduler_type constant_with_warmup --num_warmup_steps 30 \
    --scene_supervision 0.25
supervised_stage 37 36 --longest_edge 384 --dataset_level contrasts+standard+standard --seed 106 --max_train_steps 1650 \
    --learning_rate 1e-3 --num_warmup_steps 30
supervised_stage 38 37 --longest_edge 448 --seed 107 --max_train_steps 220 --learning_rate 4e-4 --num_warmup_steps 20 \
    --augment veil
python -m conversion.interpolate_weights "$out/37" "$out/38" "$out/39" --share 0.5
# From here on, the attention from patches to words is told what fits: in the weights here, from step 400 of this stage on,
# whose heads, like those of stages 36 to 38, learned at ten times the model's rate instead of four times it.
supervised_stage 40 39 --longest_edge 384 --dataset_level contrasts+standard+standard --seed 108 --max_train_steps 600 \
    --learning_rate 6e-4 --lr_scheduler_type constant_with_warmup --num_warmup_steps 30
# At a rate two to seven times those of the stages before, names of looks are learned several times faster; what that
# disturbs comes back while it falls. The weights here went through stages 41 and 42 in one run from the last weights of
# stage 40, not their mean: planned for 1800, then 2300, then 2200 steps, with veils and larger pictures from step 1600 on,
# where the rate had fallen to 31 % and went on from 28 %.
supervised_stage 41 40 --longest_edge 384 --dataset_level contrasts+standard+standard --seed 109 --max_train_steps 1600 \
    --learning_rate 3e-3 --num_warmup_steps 60
supervised_stage 42 41 --longest_edge 448 --dataset_level contrasts+standard+standard --seed 110 --max_train_steps 600 \
    --learning_rate 8.4e-4 --num_warmup_steps 0 --augment veil
# Three more layers in Encoder1, whose five had been few for all they are to do. Of the weights here, only from this stage on
# were places in orders among the roles of patches, and roles asked only of those that show something. They went through both
# stages in one run, planned for 2400, then 2000 steps, with veils and larger pictures from step 1400 on, where the rate
# had fallen to 43 % and went on from 31 %. In that run, what may not be in an order had a place in it, too, and roles that all
# of what is read has still counted.
python -m conversion.insert_layers "$out/42" "$out/42-deeper" --after 1 --after 3 --after 4
supervised_stage 43 42-deeper --longest_edge 384 --dataset_level contrasts+standard+standard --seed 111 \
    --max_train_steps 1400 --learning_rate 4e-3 --num_warmup_steps 60
supervised_stage 44 43 --longest_edge 512 --dataset_level contrasts+standard+standard --seed 112 --max_train_steps 600 \
    --learning_rate 1.2e-3 --num_warmup_steps 0 --augment veil
# A grid of positions three times as fine, and the threshold of the selection falls again. Of the weights here, only from step
# 800 of this stage on was the selection told to choose all that has to be seen; before, it was the target alone. They went
# through both stages in one run, planned for 2400, then 1850, 1750 and 1670 steps, with a threshold of 0.5 up to step 700, and
# veils and larger pictures from step 1200 on, where the rate had fallen to 36 % and went on from 33 %; at step 1300 it went
# from 27 to 23 %. In that run, what shows nothing of a thing but lies in its box was not to be chosen, and samples of which
# nothing described was offered still counted.
python -m conversion.refine_positions "$out/44" "$out/44-finer" --factor 3 --sinusoids 1.0
supervised_stage 45 44-finer --longest_edge 384 --dataset_level contrasts+standard+standard --seed 121 \
    --max_train_steps 1200 --learning_rate 4e-3 --num_warmup_steps 60 --selection_threshold 0.3
supervised_stage 46 45 --longest_edge 576 --dataset_level contrasts+standard+standard --seed 122 --max_train_steps 470 \
    --learning_rate 1.3e-3 --num_warmup_steps 0 --augment veil
# Convolutions over the patches that are read. The weights here went through stages 47 and 48 in one run, planned for 1200, then
# 1120 and 1060 steps, with veils and larger pictures from step 600 on, where the rate had fallen to 53 % and went on from 49 %.
# The heads of their supervision began anew with every such run; now they go on from stage to stage.
supervised_stage 47 46 --longest_edge 384 --dataset_level contrasts+standard+standard --seed 131 --max_train_steps 600 \
    --learning_rate 4e-3 --num_warmup_steps 60 --config_overrides num_convolution_layers=3
supervised_stage 48 47 --longest_edge 576 --dataset_level contrasts+standard+standard --seed 132 --max_train_steps 460 \
    --learning_rate 2e-3 --num_warmup_steps 0 --augment veil
# Boxes are refined by what the patch in their middle shows. The weights here went through these stages in one run, too, planned
# for 1300, then 1420, then 1350 steps, with veils and larger pictures from step 400 on, where the rate had fallen to 73 % and
# went on from 75 %; at step 900 it went from 38 to 35 %.
supervised_stage 49 48 --longest_edge 384 --dataset_level contrasts+standard+standard --seed 151 --max_train_steps 400 \
    --learning_rate 3e-3 --num_warmup_steps 60 --config_overrides refine_boxes=true
supervised_stage 50 49 --longest_edge 576 --dataset_level contrasts+standard+standard --seed 152 --max_train_steps 950 \
    --learning_rate 2.2e-3 --num_warmup_steps 0 --augment veil
# More of the same, three quarters of it the full benchmark. The weights here went through both stages in one run, planned for
# 1310, then 1290 and 1225 steps, with veils and larger pictures from step 300 on; at step 1000 the rate went from 24 to 19 %.
supervised_stage 51 50 --longest_edge 384 --dataset_level contrasts+standard+standard+standard --seed 171 \
    --max_train_steps 300 --learning_rate 3e-3 --num_warmup_steps 60
supervised_stage 52 51 --longest_edge 576 --dataset_level contrasts+standard+standard+standard --seed 172 \
    --max_train_steps 925 --learning_rate 2.4e-3 --num_warmup_steps 0 --augment veil
