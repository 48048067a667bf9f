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
How many expressions, refs and pictures the genuine data sets have, as far as that is public.

Refs and pictures of RefCOCO, RefCOCO+ and RefCOCOg: the table in TensorFlow Datasets' catalog, `ref_coco` (TFDS counts
the refs of a picture's split, and calls them referring expressions). RefCOCO's totals, 142,210 expressions for 50,000
refs in 19,994 pictures, stand in the output of refer's own pyReferDemo.ipynb. Expressions of each split: the numbers
that the literature on these sets reports (RefCOCO's also at FlagEval, "Visual Grounding"); the evaluation splits add up
to the 21,586, 21,373 and 14,498 annotations that the card of JierunChen/Ref-L4 states, and RefCOCO's and RefCOCO+'s
splits to their totals of 142,210 and 141,564.

Left out, because sources differ or don't say: expressions of the google splits, all of ReferItGame (refclef) and of
gRefCOCO. Nobody has published checksums of the annotation files that we could be certain of; a conversion keeps the
SHA-256 of what it read in `.conversion.json`, so two people can compare theirs.
"""

from pathlib import Path

import pyarrow.parquet as pq


# split: (expressions, refs, pictures)
KNOWN_SPLITS = {
    "refcoco_unc": {
        "train": (120624, 42404, 16994),
        "val": (10834, 3811, 1500),
        "testA": (5657, 1975, 750),
        "testB": (5095, 1810, 750),
    },
    "refcoco+_unc": {
        "train": (120191, 42278, 16992),
        "val": (10758, 3805, 1500),
        "testA": (5726, 1975, 750),
        "testB": (4889, 1798, 750),
    },
    "refcocog_umd": {
        "train": (80512, 42226, 21899),
        "val": (4896, 2573, 1300),
        "test": (9602, 5023, 2600),
    },
    "refcoco_google": {
        "train": (None, 40000, 19213),
        "val": (None, 5000, 4559),
        "test": (None, 5000, 4527),
    },
    "refcocog_google": {
        "train": (None, 44822, 24698),
        "val": (None, 5000, 4650),
    },
}


def count_splits(folder: Path) -> tuple[dict[str, tuple[int, int | None, int]], set[str]]:
    """
    Expressions, refs (`None` if the source didn't say them) and pictures of each split of a converted data set, and the
    names of the data sets it is from.
    """
    expressions, refs, pictures, sources = {}, {}, {}, set()
    for file in sorted((folder / "data").glob("*.parquet")):
        for row in pq.read_table(file, columns=["split", "ref_id", "image_id", "source"]).to_pylist():
            split = row["split"]
            sources.add(row["source"])
            expressions[split] = expressions.get(split, 0) + 1
            refs.setdefault(split, set()).add(row["ref_id"])
            pictures.setdefault(split, set()).add(row["image_id"])
    counts = {
        split: (expressions[split], None if None in refs[split] else len(refs[split]), len(pictures[split]))
        for split in expressions
    }
    return counts, sources


def compare_with_known(folder: Path) -> tuple[list[str], bool]:
    """
    Compare a converted data set with what is known of it.

    Args:
        folder (`Path`):
            Output of a conversion.

    Returns:
        `tuple(list[str], bool)`: a line for each split, and whether everything that is known and was converted agrees.

    Raises:
        ValueError: if its rows don't say that they are from one data set of `KNOWN_SPLITS`.
    """
    found, sources = count_splits(folder)
    source = "".join(sources) if len(sources) == 1 else None
    if source not in KNOWN_SPLITS:
        raise ValueError(
            f"Counts are known of {', '.join(KNOWN_SPLITS)}, not of {', '.join(sorted(sources))}. If it is one of these, "
            "convert with its name as --source."
        )
    lines, agrees = [], True
    for split, known in KNOWN_SPLITS[source].items():
        if split not in found:
            lines.append(f"{source} {split}: not converted")
            continue
        parts = []
        for name, expected, counted in zip(("expressions", "refs", "pictures"), known, found[split]):
            if expected is None or counted is None:
                parts.append(f"{name} {counted} (not compared)")
            elif expected == counted:
                parts.append(f"{name} {counted} as known")
            else:
                parts.append(f"{name} {counted} where {expected} are known")
                agrees = False
        lines.append(f"{source} {split}: {', '.join(parts)}")
    unknown = sorted(set(found) - set(KNOWN_SPLITS[source]))
    if unknown:
        lines.append(f"{source}: splits {unknown} are not known")
    return lines, agrees and not unknown
