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
"""What a conversion did with every tensor."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class TargetTensor:
    """
    A tensor that was written.

    Attributes:
        name (`str`):
            Its name in the checkpoint.
        shape (`list[int]`):
            Its shape.
        status (`str`):
            `"mapped"` or `"new"`.
        sources (`list[str]`):
            The tensors that it is made of.
        how (`str`):
            How it is made, where it is not simply copied.
    """

    name: str
    shape: list[int]
    status: str
    sources: list[str]
    how: str


@dataclass
class SourceTensor:
    """
    A tensor that was read.

    Attributes:
        name (`str`):
            Its name in the checkpoint.
        shape (`list[int]`):
            Its shape.
        status (`str`):
            `"mapped"` or `"unused"`.
        targets (`list[str]`):
            The tensors that it went into.
        left_out (`str`):
            Which of its rows went nowhere.
    """

    name: str
    shape: list[int]
    status: str
    targets: list[str]
    left_out: str


@dataclass
class Report:
    """
    Every tensor of a conversion, on both sides.

    Attributes:
        source, target (`str`):
            From where to where.
        target_tensors (`list[TargetTensor]`):
            All tensors of the new checkpoint.
        source_tensors (`list[SourceTensor]`):
            All tensors of the old one.
        notes (`list[str]`):
            What else the user should know.
    """

    source: str
    target: str
    target_tensors: list[TargetTensor] = field(default_factory=list)
    source_tensors: list[SourceTensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.target}", "", "Tensors written"]
        for tensor in self.target_tensors:
            made_of = f" <- {', '.join(tensor.sources)}" if tensor.sources else ""
            how = f" ({tensor.how})" if tensor.how else ""
            lines.append(f"  {tensor.status:6} {tensor.name} {tensor.shape}{made_of}{how}")
        lines += ["", "Tensors read"]
        for tensor in self.source_tensors:
            left_out = f" (left out: {tensor.left_out})" if tensor.left_out else ""
            targets = f" -> {', '.join(tensor.targets)}" if tensor.targets else ""
            lines.append(f"  {tensor.status:6} {tensor.name} {tensor.shape}{targets}{left_out}")
        lines += ["", f"Written: {self._count(self.target_tensors)}. Read: {self._count(self.source_tensors)}."]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    @staticmethod
    def _count(tensors: list) -> str:
        statuses = [tensor.status for tensor in tensors]
        return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))

    def save(self, folder: Path):
        """Write `conversion_report.json` into a folder."""
        (folder / "conversion_report.json").write_text(json.dumps(asdict(self), indent=2) + "\n")
