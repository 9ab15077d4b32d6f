"""The only training loop: one task, from its first step to its last. Methods give losses; everything else is here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ciod.data.loader import batches
from ciod.training import allocator, optim
from ciod.training.hooks import Hooks, Position, Reading, Row
from ciod.training.method_checks import MethodChecks
from ciod.training.watch import NotFinite, Watch, check_weights, first_bad, not_finite

__all__ = ["Fit", "FitResult", "NotFinite"]

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ciod.config.load import Train
    from ciod.core.distributed import World
    from ciod.core.results_schema import FitState
    from ciod.core.types import Batch
    from ciod.detectors.base import Detector
    from ciod.methods.base.method import Method
    from ciod.training.keep import Keeper


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters()) or not any(True for _ in module.parameters())


def train_mode(detector: Detector, method: Method, norm: str, *, task: int) -> None:
    """Train mode; batch normalisation keeps its statistics if the settings say so, and if it is frozen. New parts have
    none to keep.

    Args:
        norm: ``train.norm``.
    """
    detector.train()
    fresh = {m for part in method.fresh() for m in part.modules()}
    keep = norm == "eval" or (norm == "auto" and task > 0)
    for m in detector.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and ((keep and m not in fresh) or not _trains(m)):
            m.eval()


@dataclass(frozen=True)
class FitResult:
    """The result of a task's training."""

    steps: int
    seconds: float  # of this process only
    broken: list[str]  # files that could not be read
    warnings: list[str]  # about the numbers
    epochs: int = 0  # that were trained
    kept: dict[str, Any] | None = None  # the epoch that was chosen (``keep.Keeper.result``); None: the last

    @property
    def facts(self) -> dict[str, Any]:
        """The entries in results.json."""
        return {"steps": self.steps, "epochs": self.epochs, **({"kept": self.kept} if self.kept else {})}


@dataclass(kw_only=True, slots=True)
class Fit:
    """One task's training.

    Args:
        method: attached to ``detector``.
        loader: from ``data.loader.train_loader``.
        epochs: of this task.
        save: called with the state after every epoch, and inside an epoch as ``train.save_every`` and signals require.
        warn: called with each warning about the losses as soon as it arises.
        rescue: called with loader, row, steps per epoch and losses of a step whose numbers are not finite.
        keeper: chooses the weights of the best epoch; None: those of the last.
        hooks: called in this order.
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
    save: Callable[[FitState], None]
    warn: Callable[[str], None] | None = None
    rescue: Callable[..., Any] | None = None
    keeper: Keeper | None = None
    hooks: Sequence[Hooks] = ()

    optimizer: torch.optim.Optimizer = field(init=False)
    ema: optim.EMA | None = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    watch: Watch = field(init=False)
    checks: MethodChecks = field(init=False)
    at: Position = field(init=False)
    window: list[Row] = field(default_factory=list, init=False)
    broken: set[str] = field(default_factory=set, init=False)
    _saved: float = field(default=0.0, init=False)  # time of the last save, monotonic
    _clock: float = field(default=0.0, init=False)  # start of this epoch in this process
    _seen: int = field(default=0, init=False)  # images since then, on all ranks

    def run(self, resume: FitState | None = None) -> FitResult:
        """Trains; afterwards the detector holds the averaged weights, if there are any, or those of the best epoch; the
        same on every rank.

        Raises:
            NotFinite: a loss, gradient or weight became NaN or infinite.
            KeyboardInterrupt, RunAgain: a signal asked for it; the state is written.
        """
        device, s = self.world.device, self.settings
        self.optimizer = optim.optimizer(self.detector, s, self.lr)
        self.ema = optim.EMA(self.detector, s.ema) if s.ema else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=s.amp == "fp16")
        self.watch = Watch(self.task, self.method.distillation_terms, warn=self.warn)
        self.checks = MethodChecks(self.method, self.task, looks=not s.compile)
        done = self._resume(resume) if resume else 0
        self.at = at = Position(
            self.task, self.tasks, self.epochs, len(self.loader), done, method=self.method, detector=self.detector
        )
        began = self._saved = time.monotonic()
        try:
            self._call(lambda hook: hook.on_task(at))
            with self.world.stop.at_steps(), allocator.keeping_freed(device, wanted=s.keep_freed):
                if done and not done % at.steps:
                    self._after_epoch(done // at.steps - 1)  # an earlier process may have stopped inside
                while at.done < at.total and not (self.keeper is not None and self.keeper.stops):
                    self._epoch(at)
                if self.window:  # it ends before the last epoch
                    self._read(at.done)
        finally:
            self._call(lambda hook: hook.on_end(at))
        self.watch.end_epoch()
        if self.keeper is not None:
            self.keeper.finish(self.detector)
        elif self.ema is not None:
            self.ema.copy_to(self.detector)
        self.world.take_over(self.detector)
        warnings = [*self.checks.warnings, *self.watch.sentences]
        kept = self.keeper.result(self.epochs) if self.keeper is not None else None
        seconds = time.monotonic() - began
        return FitResult(at.done, seconds, sorted(self.broken), warnings, at.done // at.steps, kept)

    def _call(self, call: Callable[[Hooks], None]) -> None:
        for hook in self.hooks:
            call(hook)

    def _epoch(self, at: Position) -> None:
        """Trains the rest of the epoch."""
        epoch, skip = divmod(at.done, at.steps)
        train_mode(self.detector, self.method, self.settings.norm, task=self.task)
        sampler: Any = self.loader.batch_sampler
        sampler.epoch, sampler.skip = epoch, skip
        self._clock, self._seen = time.monotonic(), 0
        for batch in batches(self.loader):
            row = self._step(batch.to(self.world.device), at.done)
            at.done += 1
            self._call(lambda hook, row=row: hook.on_step(at, row))
            if at.done % self.settings.log_every == 0 or at.done == at.total:
                self._read(at.done)
            if at.done % at.steps:
                self._pause(at.done)
        self._save(at.done)
        if self.world.any(self.world.stop.asked is not None)[0]:
            self.world.stop.leave()
        self._after_epoch(epoch)

    def _pause(self, done: int) -> None:
        """Inside an epoch: writes the state when it is due, and exits if a signal asks for it.

        Ranks communicate only when the losses are read, which waits for the device anyway.
        """
        s, leave = self.settings, self.world.stop.asked is not None
        late = s.save_minutes is not None and time.monotonic() - self._saved > 60 * s.save_minutes
        if self.world.size > 1:
            asking = done % s.log_every == 0
            leave, late = self.world.any(leave, late) if asking else (False, False)
        if leave or late or (s.save_every and done % s.save_every == 0):
            self._save(done)
        if leave:
            self.world.stop.leave()

    def _save(self, done: int) -> None:
        try:
            check_weights(self.detector, self.task, done)
        except NotFinite:
            if self.window:
                self._read(done)  # finds the step, if the losses show it
            raise
        self.save(self.state(done))
        self._saved = time.monotonic()

    def _after_epoch(self, epoch: int) -> None:
        with self.world.stop.at_once():
            if self.keeper is not None:
                self.keeper.look(self.detector, self.ema)
            self._call(lambda hook: hook.on_epoch(self.at, epoch))

    def _step(self, batch: Batch, step: int) -> Row:
        s = self.settings
        lr = optim.rate(step, self.at.total, s, self.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(s.amp)
        with torch.autocast(self.world.device.type, dtype=kind, enabled=kind is not None):
            losses = self.checks.loss(batch)
        loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.checks.backward(self.scaler.scale(loss))
        self.checks.after_backward()
        self.scaler.unscale_(self.optimizer)
        params = [p for p in self.detector.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in params if p.grad is not None], foreach=True)
        if s.clip:
            nn.utils.clip_grads_with_norm_(params, s.clip, norm, foreach=True)
        self.method.before_step()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.detector)
        losses = {k: v.detach() for k, v in losses.items()}
        row = Row(step, step // self.at.steps, losses, None if s.amp == "fp16" else norm.detach(), batch.names)
        self.window.append(row)
        self.broken.update(batch.broken)
        self._seen += len(batch.names) * self.world.size
        return row

    def _read(self, step: int) -> None:
        """The only place that waits for the device: losses of the last steps are read, checked and logged."""
        names = list(self.window[0].losses)
        zero = self.window[0].losses[names[0]].new_zeros(())
        read = torch.stack([torch.stack([*r.losses.values(), zero if r.norm is None else r.norm]) for r in self.window])
        read = read.cpu()
        values, norms = read[:, :-1], read[:, -1]
        bad = first_bad(values, norms)
        if not self.world.all(bad is None):
            if bad is None:
                raise NotFinite(f"Another rank got a NaN or infinite loss in task {self.task + 1}.")
            row = self.window[bad]
            if self.rescue is not None:
                read_losses = dict(zip(names, values[bad].tolist(), strict=True))
                self.rescue(self.loader, row, self.at.steps, losses=read_losses)
            raise not_finite(row, values[bad], float(norms[bad]), self.task, self.detector)
        self.watch.read(self.window, values)
        reading = Reading(
            self.window,
            values,
            mean=dict(zip(names, values.mean(0).tolist(), strict=True)),
            lr=self.optimizer.param_groups[0]["lr"],
            images_per_second=self._seen / max(1e-9, time.monotonic() - self._clock),
        )
        self._call(lambda hook: hook.on_read(self.at, reading))
        self.window.clear()

    def state(self, done: int) -> FitState:
        """The state that a resumed run starts from, after ``done`` steps of the task."""
        state: FitState = {
            "done": done,
            "epoch": done // self.at.steps,
            "steps": self.at.steps,
            "window": [
                [r.step, r.epoch, {k: float(v) for k, v in r.losses.items()}, None if r.norm is None else float(r.norm)]
                + [r.names]
                for r in self.window
            ],
            "watch": self.watch.state(),
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": {"steps": self.ema.steps, "state": self.ema.state} if self.ema else None,
            "scaler": self.scaler.state_dict(),
            "method": self.method.state(),
            "broken": sorted(self.broken),
        }
        if self.keeper is not None:
            state["keeper"] = self.keeper.state()
        return state

    def _resume(self, saved: FitState) -> int:
        self.detector.load_state_dict(saved["detector"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema is not None and saved["ema"]:
            self.ema.steps = saved["ema"]["steps"]
            self.ema.state = {k: v.to(self.world.device) for k, v in saved["ema"]["state"].items()}
        self.scaler.load_state_dict(saved["scaler"])
        self.method.load_state(saved["method"])
        self.broken.update(saved["broken"])
        self.watch.load_state(saved["watch"])
        device = self.world.device
        if self.keeper is not None and "keeper" in saved:
            self.keeper.load_state(saved["keeper"], device)
        for step, epoch, losses, norm, names in saved["window"]:
            tensors = {k: torch.tensor(v, device=device) for k, v in losses.items()}
            self.window.append(
                Row(step, epoch, tensors, None if norm is None else torch.tensor(norm, device=device), names)
            )
        return saved["done"]
