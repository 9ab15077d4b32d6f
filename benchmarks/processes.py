"""python -m benchmarks.processes

A fine-tuning step of one batch shared by several processes, each with ``--threads`` threads (or a GPU of its own),
against one process that does it alone; and, on a CPU, one process with the threads of all. By the clock, in turns.

    python -m benchmarks.processes --detector yolox-s --size 640 --batch 16 --processes 1,2,4 --threads 1
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import distributed as dist

from benchmarks import timing
from benchmarks.step import batch, fine_tuning
from ciod import detectors
from ciod.config.load import Train
from ciod.core.distributed import World, world
from ciod.runs.environment import peak_memory_mb


def stepper(args: argparse.Namespace, process_group: World) -> Callable[[], None]:
    """One whole step on this process's share of the batch, gradients of all averaged."""
    torch.manual_seed(0)
    names = tuple(f"class {i}" for i in range(args.classes))
    detector = (
        detectors.build(names, name=args.detector, size=args.size, backbone_weights=None)
        .to(process_group.device)
        .train()
    )
    data = batch(args.batch // process_group.size, args.size, args.classes, 0, process_group.device)
    return fine_tuning(detector, Train(optimizer="sgd", lr=1e-4), data, process_group)


def serve(args: argparse.Namespace) -> None:
    """As ``timing.serve``; the first process hears and speaks for all, and the others follow it."""
    with world() as process_group:
        step = stepper(args, process_group)
        go = torch.ones(1, device=process_group.device)
        if process_group.main:
            print("ready", flush=True)
        while True:
            if process_group.main:
                go.fill_(float(bool(sys.stdin.readline())))
            if process_group.size > 1:
                dist.broadcast(go, 0)
            if not go.item():
                return
            seconds = []
            for _ in range(3):  # the first wakes the others; of two more the quicker
                began = time.perf_counter()
                step()
                if process_group.device.type == "cuda":
                    torch.cuda.synchronize()
                process_group.barrier()
                seconds.append(time.perf_counter() - began)
            if process_group.main:
                print(min(seconds[1:]), peak_memory_mb(), flush=True)


def main() -> None:
    parse = timing.parser(__doc__, detector="yolox-nano", size=320, batch=8, classes=80, rounds=10, processes="1,2")
    parse.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if args.serve:
        serve(args)
        return
    counts = sorted({1, *map(int, args.processes.split(","))})
    if any(args.batch % n for n in counts):
        parse.error(f"--batch {args.batch} cannot be shared equally by each of {args.processes} processes.")
    argv = [*timing.without(sys.argv[1:], ("--json", "--rounds", "--threads")), "--serve"]
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node"]
    commands = {
        f"{n} × {args.threads}": [*run, str(n), "-m", "benchmarks.processes", *argv, "--threads", str(args.threads)]
        for n in counts
    }
    if not torch.cuda.is_available():
        whole = counts[-1] * args.threads
        commands[f"1 × {whole}"] = [*run, "1", "-m", "benchmarks.processes", *argv, "--threads", str(whole)]
    seconds, peak = timing.apart(commands, rounds=args.rounds)
    lines = [f"{args.detector}, {args.size} px, batch {args.batch}: processes × threads; memory of the first process"]
    figures = timing.against(f"1 × {args.threads}", seconds, peak, lines)
    timing.tell(lines, {"settings": timing.settings(args), "processes": figures}, args.json)


if __name__ == "__main__":
    main()
