# Copyright 2026 The ScanFormer authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Write an untrained ScanFormer for Scenes: random weights, and a word-piece tokenizer of the benchmark's words.

    python -m examples.scenes.create_model --output_dir outputs/untrained
    python -m examples.scenes.create_model --output_dir outputs/dense --config_overrides num_scales=1
"""

import string
from dataclasses import dataclass, field

import torch
from transformers import BertTokenizer, HfArgumentParser, set_seed

from modeling_scanformer import (
    ScanFormerConfig,
    ScanFormerForVisualGrounding,
    ScanFormerImageProcessor,
    ScanFormerProcessor,
)

from .language import vocabulary


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Folder to write the model and its processor to."})
    config_overrides: str = field(
        default="", metadata={"help": "Changes to the default configuration: name=value, separated by commas."}
    )
    longest_edge: int = field(default=192, metadata={"help": "Longer side of the finest scale, in pixels."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights."})


def create_tokenizer(model_max_length: int) -> BertTokenizer:
    """
    A BERT tokenizer of the words of Scenes. Other words are spelled letter by letter, so that no ASCII text is unknown.
    """
    characters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation]
    pieces += [*characters, *(f"##{character}" for character in characters)]
    pieces += [word for word in vocabulary() if word not in pieces]
    return BertTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def create_model(config_overrides: str = "", longest_edge: int = 192, seed: int = 0):
    """The model with random weights, and its processor."""
    config = ScanFormerConfig(
        hidden_size=128,
        num_hidden_layers=8,
        selection_layer=5,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        patch_size=16,
        initializer_range=0.08,
    )
    if config_overrides:
        config.update_from_string(config_overrides)
    tokenizer = create_tokenizer(config.max_position_embeddings)
    config.vocab_size = len(tokenizer)
    config.validate()
    image_processor = ScanFormerImageProcessor(
        size={"longest_edge": longest_edge}, patch_size=config.patch_size, num_scales=config.num_scales
    )
    set_seed(seed)
    model = ScanFormerForVisualGrounding(config)
    return model, ScanFormerProcessor(image_processor, tokenizer)


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    model, processor = create_model(args.config_overrides, args.longest_edge, args.seed)
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    print(f"{args.output_dir}: {model.num_parameters():,} parameters in {torch.get_default_dtype()}")


if __name__ == "__main__":
    main()
