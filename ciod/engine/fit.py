"""The only training loop: one task, from its first step to its last. Methods give losses; everything else is here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ciod.engine import optim
from ciod.errors import CiodError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ciod.config import Train
    from ciod.detectors.detector import Detector
    from ciod.engine.distributed import World
    from ciod.engine.progress import Reporter
    from ciod.methods.method import Method
    from ciod.report.log import RunLog
    from ciod.types import Batch


class NotFinite(CiodError):
    """A loss became NaN or infinite."""


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters()) or not any(True for _ in module.parameters())


@dataclass
class Fit:
    """One task's training.

    Args:
        method: attached to ``detector``.
        loader: from ``data.dataset.train_loader``.
        epochs: of this task.
        save: called after every epoch with what must survive a crash.
    """

    detector: Detector
    method: Method
    loader: DataLoader
    settings: Train
    epochs: int
    lr: float
    task: int
    tasks: int
    world: World
    log: RunLog | None
    reporter: Reporter
    save: Callable[[dict[str, Any]], None]
    after_epoch: Callable[[int], None] | None = None

    def run(self, resume: dict[str, Any] | None = None) -> dict[str, Any]:
        """Trains; afterwards the detector holds the averaged weights if there are any.

        Returns:
            steps, seconds and files that could not be read.
        """
        device, s = self.world.device, self.settings
        self.optimizer = optim.optimizer(self.detector, s, self.lr)
        self.ema = optim.EMA(self.detector, s.ema) if s.ema else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=s.amp == "fp16")
        self.window: list[tuple[dict[str, Tensor], list[str]]] = []
        self.broken: set[str] = set()
        first = self._resume(resume) if resume else 0
        steps = len(self.loader)
        total = self.epochs * steps
        began = time.monotonic()
        self.reporter.begin(f"task {self.task + 1}/{self.tasks}", total, first * steps)
        try:
            for epoch in range(first, self.epochs):
                self._mode()
                self.loader.batch_sampler.epoch = epoch  # type: ignore[union-attr]
                self._clock, self._seen = time.monotonic(), 0
                for i, batch in enumerate(self.loader):
                    step = epoch * steps + i
                    self._step(batch.to(device), step, total)
                    if (step + 1) % s.log_every == 0 or step + 1 == total:
                        self._read(step + 1, epoch)
                self.save(self.state(epoch + 1))
                if self.after_epoch is not None:
                    self.after_epoch(epoch)
        finally:
            self.reporter.end()
        if self.ema is not None:
            self.ema.copy_to(self.detector)
        return {"steps": total, "seconds": time.monotonic() - began, "broken": sorted(self.broken)}

    def _mode(self) -> None:
        """Train mode; batch normalisation keeps its statistics where the settings say so, and where it is frozen."""
        self.detector.train()
        keep = self.settings.norm == "eval" or (self.settings.norm == "auto" and self.task > 0)
        for m in self.detector.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and (keep or not _trains(m)):
                m.eval()

    def _step(self, batch: Batch, step: int, total: int) -> None:
        s = self.settings
        lr = optim.rate(step, total, s, self.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(s.amp)
        with torch.autocast(self.world.device.type, dtype=kind, enabled=kind is not None):
            losses = self.method.loss(batch)
        loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if s.clip:
            nn.utils.clip_grad_norm_(self.detector.parameters(), s.clip, foreach=True)
        self.method.before_step()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.detector)
        self.window.append(({k: v.detach() for k, v in losses.items()}, batch.names))
        self.broken.update(batch.broken)
        self._seen += len(batch.names) * self.world.size

    def _read(self, step: int, epoch: int) -> None:
        """The only place where the device is waited for: losses of the last steps are read, checked, logged."""
        names = list(self.window[0][0])
        values = torch.stack([torch.stack(list(losses.values())) for losses, _ in self.window]).cpu()
        finite = bool(values.isfinite().all())
        if not self.world.all(finite):
            if finite:
                raise NotFinite(f"A loss of another process became NaN or infinite in task {self.task + 1}.")
            row = int((~values.isfinite().all(1)).int().argmax())
            bad = [n for n, v in zip(names, values[row], strict=True) if not v.isfinite()]
            raise NotFinite(
                f"{', '.join(bad)} became {float(values[row][names.index(bad[0])])} in task {self.task + 1}, step "
                f"{step - len(self.window) + row + 1}, images {', '.join(self.window[row][1][:4])}. A lower train.lr, "
                "a smaller train.clip or train.amp=off usually helps; the last epoch's checkpoint is intact."
            )
        mean = dict(zip(names, values.mean(0).tolist(), strict=True))
        speed = self._seen / max(1e-9, time.monotonic() - self._clock)
        lr = self.optimizer.param_groups[0]["lr"]
        if self.log is not None:
            self.log.write("step", task=self.task, epoch=epoch, step=step, losses=mean, lr=lr, images_per_second=speed)
        self.reporter.step(step, f"epoch {epoch + 1}/{self.epochs}", mean, speed)
        self.window.clear()

    def state(self, epoch: int) -> dict[str, Any]:
        """What a resumed run starts from: ``epoch`` epochs are through."""
        return {
            "epoch": epoch,
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": {"steps": self.ema.steps, "state": self.ema.state} if self.ema else None,
            "scaler": self.scaler.state_dict(),
            "method": self.method.state(),
            "broken": sorted(self.broken),
        }

    def _resume(self, saved: dict[str, Any]) -> int:
        self.detector.load_state_dict(saved["detector"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema is not None and saved["ema"]:
            self.ema.steps = saved["ema"]["steps"]
            self.ema.state = {k: v.to(self.world.device) for k, v in saved["ema"]["state"].items()}
        self.scaler.load_state_dict(saved["scaler"])
        self.method.load_state(saved["method"])
        self.broken.update(saved["broken"])
        return saved["epoch"]
