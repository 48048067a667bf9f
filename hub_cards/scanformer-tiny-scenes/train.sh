#!/usr/bin/env bash
# Rebuilds the weights in this folder, from the repository's root, with `pip install -c constraints.txt -e ".[train]"`:
#
#     bash hub_cards/scanformer-tiny-scenes/train.sh outputs/scanformer-tiny-scenes
#
# About an hour and a half on two CPU cores. Equal up to the rounding of the machine's arithmetic.
set -euo pipefail
out=${1:-outputs/scanformer-tiny-scenes}
common=(--dataset scenes --mixed_precision bf16 --attn_implementation eager --longest_edge 128 --learning_rate 1e-3
    --eval_steps 500 --max_eval_samples 200)

python -m examples.scenes.create_model --output_dir "$out/untrained"
# 1. every patch is read: language and places meet
python examples/run_visual_grounding.py --model_name_or_path "$out/untrained" --output_dir "$out/stage1" "${common[@]}" \
    --dataset_level easy --seed 0 --max_train_steps 2000 \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 400 --selection_warmup_steps 1000000
# 2. four expressions about every picture, so that words tell objects apart
python examples/run_visual_grounding.py --model_name_or_path "$out/stage1" --output_dir "$out/stage2" "${common[@]}" \
    --dataset_level basic --expressions_per_scene 4 --seed 2 --max_train_steps STAGE2_STEPS \
    --lr_scheduler_type constant_with_warmup --num_warmup_steps 100 --selection_warmup_steps 1000000
# 3. the selection is switched on, the learning rate falls
python examples/run_visual_grounding.py --model_name_or_path "$out/stage2" --output_dir "$out/stage3" "${common[@]}" \
    --dataset_level basic --expressions_per_scene 4 --seed 3 --max_train_steps STAGE3_STEPS \
    --lr_scheduler_type linear --num_warmup_steps 50 --selection_anneal_steps 200
