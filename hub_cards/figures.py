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
"""Figures in prose that no measurement backs."""

import re
from collections.abc import Iterable, Iterator


# A percentage or a decimal fraction: not part of a name (Acc@0.5:0.95, Apache-2.0) or a version (5.23.0).
FIGURE = re.compile(
    r"(?<![\w.@/])(?P<percent>\d*\.?\d+)\s?(?:%|per\s?cent\b)"
    r"|(?<![\w.@/])(?<![A-Za-z]-)(?<!\d:)(?P<decimal>\d*\.\d+)(?!\w|[.:]\d)"
)
NO_PROSE = re.compile(r"`[^`]*`|https?://\S+|\]\([^)]*\)|arXiv[: ]\d{4}\.\d{5}", re.IGNORECASE)
# Percentages of shares; decimals as they are, of shares in percent, in millions, in billions.
PERCENT_SCALES, DECIMAL_SCALES = (100.0,), (1.0, 100.0, 1e-6, 1e-9)


def find_unbacked_figures(text: str, measured: Iterable[float]) -> Iterator[tuple[int, str, str]]:
    """
    Find the figures of a text that look like results, and that equal no measured number at the precision they are written
    with.

    A figure is a percentage or a decimal fraction. What is no result is written as code: code, links and arXiv numbers
    are not looked at. This catches invented and outdated figures; whether a figure that was measured is put beside the
    right words, only a reader can tell.

    Args:
        text (`str`):
            Markdown.
        measured (`Iterable[float]`):
            Numbers of the results files. They may be written as they are, in percent, in millions or in billions.

    Yields:
        The line's number, the figure, and the line.
    """
    measured = list(measured)
    in_code = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            for match in FIGURE.finditer(NO_PROSE.sub(" ", line)):
                scales = PERCENT_SCALES if match["percent"] else DECIMAL_SCALES
                if not _is_measured(match["percent"] or match["decimal"], measured, scales):
                    yield number, match[0], line.strip()


def _is_measured(figure: str, measured: list[float], scales: tuple[float, ...]) -> bool:
    unit = 10.0 ** -len(figure.partition(".")[2])
    return any(abs(value * scale - float(figure)) <= 0.5001 * unit for value in measured for scale in scales)
