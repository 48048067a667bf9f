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
"""Several processes: that they are started, and that they know of each other."""

import os
import sys

import psutil
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, get_int_from_env, parse_flag_from_env

from .checks import DataError


# What torchrun and the MPIs tell every process that they start.
NUM_PROCESSES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
ON_THE_CPU = (
    "On the CPU, several processes are started by `accelerate launch --cpu --num_processes N SCRIPT ...`, without a "
    "configuration file."
)


def start_processes():
    """
    Start what `accelerate launch --cpu --num_processes N` was asked for. Accelerate itself starts a single process, and
    expects an MPI to have started N launchers. Where none did, this process becomes torchrun, with the script and its
    arguments. To be called before anything else; otherwise nothing happens.

    Raises:
        DataError: if the launcher does not say how many processes it was asked for, or was asked for several machines.
    """
    waits_for_others = parse_flag_from_env("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ
    if not waits_for_others or get_int_from_env(NUM_PROCESSES, 0) > 0:
        return
    # only its command line has the number
    launcher = psutil.Process().parent().cmdline()
    start = next((place for place, word in enumerate(launcher) if word.endswith("launch")), None)
    if start is None:
        raise DataError(f"{ON_THE_CPU} This process was started by something else, {launcher}.")
    asked = launch_command_parser().parse_args(launcher[start + 1 :])
    if (asked.num_machines or 1) > 1:
        raise DataError("On the CPUs of several machines, Accelerate needs an MPI: --mpirun_hostfile.")
    number = asked.num_processes or load_config_from_file(asked.config_file).num_processes
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
    os.execv(sys.executable, [*torchrun, *sys.argv])


def check_processes(accelerator: Accelerator):
    """
    Let processes that would each work alone, or work otherwise than they were told to, fail before the work begins.

    Raises:
        DataError: if this is such a process.
    """
    started = get_int_from_env(NUM_PROCESSES, 1)
    if started > accelerator.num_processes:
        raise DataError(
            f"{started} processes were started, and none knows of the others: Accelerate found no GPU. {ON_THE_CPU}"
        )
    sharded = [name for name in ("FSDP", "DEEPSPEED") if parse_flag_from_env(f"ACCELERATE_USE_{name}")]
    if sharded and accelerator.distributed_type == DistributedType.MULTI_CPU:
        raise DataError(f"Accelerate shards nothing on the CPU, as {sharded[0]} is to do. {ON_THE_CPU}")
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise DataError("Of FSDP, only its second version is supported: set fsdp_version to 2.")


__all__ = ["check_processes", "start_processes"]
