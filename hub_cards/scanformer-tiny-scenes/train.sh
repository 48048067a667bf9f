#!/usr/bin/env bash
# Trains a model like the one in this folder, from the repository's root, with `pip install -c constraints.txt -e ".[train]"`:
#
#     bash hub_cards/scanformer-tiny-scenes/train.sh outputs/scanformer-tiny-scenes
#
# Two and a quarter hours on two CPU cores, by the progress bars of the stages. The weights in this folder went through
# these stages; their third and fourth stage were the first steps of longer schedules, in which the learning rate had
# begun to fall.
set -euo pipefail
out=${1:-outputs/scanformer-tiny-scenes}

stage() { # name, start, and what differs
    local name=$1 start=$2
    shift 2
    python examples/run_visual_grounding.py --model_name_or_path "$out/$start" --output_dir "$out/$name" \
        --dataset scenes --longest_edge 128 --mixed_precision bf16 --attn_implementation eager \
        --eval_steps 500 --max_eval_samples 200 "$@"
}

python -m examples.scenes.create_model --output_dir "$out/untrained"
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
python -m conversion.resize_patches "$out/5" "$out/5-finer" --patch_size 8
stage 6 5-finer --dataset_level primer --expressions_per_scene 4 --seed 21 --max_train_steps 1500 --learning_rate 7e-4 \
    --lr_scheduler_type linear --num_warmup_steps 50 --per_device_train_batch_size 64 --selection_threshold 0.4 \
    --mixed_precision no --attn_implementation sdpa
# Now words other than colours count as well.
stage 7 6 --dataset_level basic --expressions_per_scene 4 --seed 22 --max_train_steps 1500 --learning_rate 7e-4 \
    --lr_scheduler_type linear --num_warmup_steps 30 --per_device_train_batch_size 64 --selection_threshold 0.4 \
    --mixed_precision no --attn_implementation sdpa
