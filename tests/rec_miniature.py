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
"""A small data set in every form that REC data comes in."""

import base64
import json
import struct
from io import BytesIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from conversion.convert_rec_dataset import Arguments


# id: size, split
PICTURES = {7: ((64, 48), "train"), 20: ((40, 72), "train"), 300: ((56, 56), "val"), 4123: ((90, 30), "testA")}
CATEGORIES = {1: "person", 18: "dog"}
# ref: picture, category, box (x, y, width, height), sentences
REFS = {
    0: (7, 18, [4.0, 6.5, 20.25, 30.0], ["the red dog", "dog on the left"]),
    1: (7, 1, [30.0, 2.0, 34.0, 46.0], ["a man"]),
    2: (20, 1, [0.0, 10.0, 25.5, 62.0], ["woman in blue", "the blue one", "her"]),
    3: (300, 18, [10.0, 10.0, 20.0, 20.0], ["dog with a café cup"]),
    4: (4123, 1, [60.0, 5.0, 30.0, 25.0], ["boy", "the child on the right"]),
}
NUM_SENTENCES = sum(len(ref[3]) for ref in REFS.values())
# what a form may not say
COMPARED = ("image_id", "width", "height", "expression", "bbox", "split", "source")


def file_name(picture: int) -> str:
    return f"COCO_train2014_{picture:012d}.jpg"


def annotation_id(ref: int) -> int:
    return 1000 + ref


def sentences():
    """(sentence id, ref id, picture, category, box, split, text) of all sentences."""
    number = 0
    for ref, (picture, category, box, texts) in REFS.items():
        for text in texts:
            yield number, ref, picture, category, box, PICTURES[picture][1], text
            number += 1


def xyxy(box: list[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def render(picture: int) -> Image.Image:
    (width, height), _ = PICTURES[picture]
    random = np.random.default_rng(picture)
    image = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = random.integers(0, width - 8), random.integers(0, height - 8)
        draw.rectangle([x, y, x + 8, y + 8], fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


def jpeg(picture: int) -> bytes:
    buffer = BytesIO()
    render(picture).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def write_images(folder):
    folder.mkdir()
    for picture in PICTURES:
        (folder / file_name(picture)).write_bytes(jpeg(picture))
    return folder


def python2_pickle(value) -> bytes:
    """Protocol 2 as Python 2 wrote it: its str is bytes, which Python 3 never writes."""

    def write(value) -> bytes:
        if isinstance(value, str):
            data = value.encode()
            return b"U" + struct.pack("<B", len(data)) + data
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(write, value)) + b"e"
        return b"}(" + b"".join(write(key) + write(item) for key, item in value.items()) + b"u"

    return b"\x80\x02" + write(value) + b"."


def make_refs() -> list[dict]:
    refs = [
        {
            "ref_id": ref,
            "ann_id": annotation_id(ref),
            "image_id": picture,
            "category_id": category,
            "split": PICTURES[picture][1],
            # with the annotation's id, which the picture's name lacks
            "file_name": file_name(picture).replace(".jpg", f"_{annotation_id(ref)}.jpg"),
            "sentences": [],
        }
        for ref, (picture, category, _, _) in REFS.items()
    ]
    for number, ref, *_, text in sentences():
        words = text.split()
        refs[ref]["sentences"].append({"sent_id": number, "sent": text, "raw": text.title(), "tokens": words})
    return refs


def make_instances() -> dict:
    return {
        "images": [
            {"id": picture, "file_name": file_name(picture), "width": size[0], "height": size[1]}
            for picture, (size, _) in PICTURES.items()
        ],
        "annotations": [
            {"id": annotation_id(ref), "image_id": picture, "category_id": category, "bbox": box}
            | {"segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]]}
            for ref, (picture, category, box, _) in REFS.items()
        ],
        "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
    }


def write_refer(folder, refs=None, instances=None):
    folder.mkdir()
    (folder / "refs(unc).p").write_bytes(python2_pickle(make_refs() if refs is None else refs))
    (folder / "instances.json").write_text(json.dumps(make_instances() if instances is None else instances))
    return [str(folder)]


def write_by_split(folder, suffix, form):
    """A file for each split, `form(sentences of the split)` its contents."""
    folder.mkdir()
    files = []
    for split in sorted({split for _, split in PICTURES.values()}):
        file = folder / f"finetune_mini_{split}.{suffix}"
        file.write_text(form([sentence for sentence in sentences() if sentence[5] == split]))
        files.append(str(file))
    return files


def write_mdetr(folder):
    def form(chosen):
        images, annotations = [], []
        for number, ref, picture, category, box, _, text in chosen:
            width, height = PICTURES[picture][0]
            image = {"id": number, "file_name": file_name(picture), "width": width, "height": height, "caption": text}
            images.append({**image, "original_id": picture, "dataset_name": "mini", "tokens_negative": []})
            annotations.append(
                {"id": 50 + number, "image_id": number, "category_id": category, "bbox": box, "iscrowd": 0}
                | {"original_id": annotation_id(ref), "tokens_positive": [[0, len(text)]]}
            )
        categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
        return json.dumps({"images": images, "annotations": annotations, "categories": categories})

    return write_by_split(folder, "json", form)


def write_ofa(folder):
    def form(chosen):
        lines = []
        for number, ref, picture, _, box, _, text in chosen:
            content = base64.urlsafe_b64encode(jpeg(picture)).decode()
            corners = ",".join(str(value) for value in xyxy(box))
            lines.append(f"{ref}_{number}\t{picture}\t{text}\t{corners}\t{content}\n")
        return "".join(lines)

    return write_by_split(folder, "tsv", form)


def write_odvg(folder):
    def form(chosen):
        lines = []
        for _, _, picture, _, box, _, text in chosen:
            width, height = PICTURES[picture][0]
            grounding = {"caption": text, "regions": [{"bbox": xyxy(box), "phrase": text.split()[-1]}]}
            entry = {"filename": file_name(picture), "height": height, "width": width, "grounding": grounding}
            lines.append(json.dumps(entry) + "\n")
        return "".join(lines)

    return write_by_split(folder, "jsonl", form)


def write_vlm_r1(folder):
    def form(chosen):
        samples = []
        for _, _, picture, _, box, split, text in chosen:
            width, height = PICTURES[picture][0]
            sample = {"dataset": f"mini_{split}", "height": height, "width": width, "normal_caption": text}
            samples.append({**sample, "image": f"train2014/{file_name(picture)}", "solution": xyxy(box)})
        return json.dumps(samples)

    return write_by_split(folder, "json", form)


def write_lmms_lab(folder):
    """One row for each ref, the picture in it."""
    rows = {}
    for ref, (picture, _, box, texts) in REFS.items():
        name = file_name(picture).replace(".jpg", f"_{annotation_id(ref)}.jpg")
        row = {"question_id": str(ref), "image": {"bytes": jpeg(picture), "path": None}, "answer": texts}
        rows.setdefault(PICTURES[picture][1], []).append({**row, "bbox": box, "file_name": name})
    features = datasets.Features(
        {"question_id": datasets.Value("string"), "image": datasets.Image()}
        | {"answer": datasets.List(datasets.Value("string")), "bbox": datasets.List(datasets.Value("float32"))}
        | {"file_name": datasets.Value("string")}
    )
    return write_parquet(folder, rows, features.arrow_schema)


def write_jxu124(folder):
    """One row for each ref, the picture named."""
    rows = {}
    for ref, image in zip(make_refs(), (PICTURES[picture] for picture, *_ in REFS.values())):
        (width, height), split = image
        info = json.dumps({"width": width, "height": height})
        annotation = json.dumps(make_instances()["annotations"][ref["ref_id"]])
        path = f"coco/train2014/{file_name(ref['image_id'])}"
        box = xyxy(REFS[ref["ref_id"]][2])
        row = {**ref, "raw_anns": annotation, "raw_image_info": info, "image_path": path, "bbox": box}
        # in these copies the split's file and the row may disagree about testA's name
        rows.setdefault("test" if split == "testA" else split, []).append(row)
    return write_parquet(folder, rows, None)


def write_parquet(folder, rows, schema):
    (folder / "data").mkdir(parents=True)
    for split, chosen in rows.items():
        table = pa.Table.from_pylist(chosen, schema=schema)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return [str(folder)]


WRITERS = {
    "refer": (write_refer, "refer"),
    "mdetr": (write_mdetr, "mdetr"),
    "ofa": (write_ofa, "ofa"),
    "odvg": (write_odvg, "odvg"),
    "vlm-r1": (write_vlm_r1, "vlm-r1"),
    "lmms-lab": (write_lmms_lab, "hub"),
    "jxu124": (write_jxu124, "hub"),
}


def arguments(tmp_path, images, annotations=None, **options) -> Arguments:
    """The miniature in refer's form, unless said otherwise."""
    if annotations is None:
        annotations = [str(tmp_path / "mini")] if (tmp_path / "mini").exists() else write_refer(tmp_path / "mini")
    defaults = {"format": "refer", "split_by": "unc", "output": str(tmp_path / "out"), "images": str(images)}
    return Arguments(**{"annotations": annotations, **defaults, **options})


def read_rows(folder) -> list[dict]:
    files = sorted((folder / "data").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def by_sentence(rows: list[dict]) -> dict[str, dict]:
    return {row["expression"]: row for row in rows}


def compress(counts: list[int]) -> str:
    """COCO's string form of run lengths, as its C code writes it."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != -1 if bits & 16 else value != 0
            text += chr((bits | 32 if more else bits) + 48)
    return text
