"""The loop over the batches of an epoch, without the calls that reach nobody.

Lightning asks every callback, the module, the data module and the strategy for each of its hooks at every step, whether
they implement it or not, under a profiler that does nothing: more time than a step of a small network.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import DoublePrecision, MixedPrecision, Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.optim import Optimizer

from glr_lightning.training.images import LightningImages
from glr_lightning.training.module import GLRModule

IN_BATCHES = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")
"""The hooks of callbacks that Lightning calls at a step with manual optimization."""
OF_MODULES = (*IN_BATCHES, "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""The hooks of modules that it calls at a step."""
TESTED = "2.6."
"""The releases of Lightning whose loop this mirrors, by the tests; with others it is Lightning's own."""
RELEASE = version("pytorch-lightning")
Hook = Callable[..., Any]


@dataclass(frozen=True)
class _Parts:
    """What takes part in the steps of an epoch, looked up once: callbacks by the hooks that they implement."""

    module: GLRModule
    data: LightningImages
    optimizer: Optimizer
    context: Callable[[], AbstractContextManager[Any]]
    starts: tuple[Hook, ...]
    before_steps: tuple[Hook, ...]
    ends: tuple[Hook, ...]


class BatchLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, which calls only what somebody implements.

    Hooks, their order and arguments, counters, logged values and checkpoints are those of Lightning's own loop. That
    one takes the first batch after a restart, and all batches where more takes part than this class knows of: several
    processes, a profiler, a module with hooks or a `training_step` of its own, another release of Lightning.

    Use it in a Trainer that validates after each epoch and does not log by itself: `log_every_n_steps=0`.
    """

    _parts: _Parts | None = None

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Look up who takes part in the epoch."""
        super().on_run_start(data_fetcher)
        self._parts = _parts_of(self.trainer)

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Take a step."""
        if self._parts is None or self.restarting:
            super().advance(data_fetcher)
            return
        trainer, parts = self.trainer, self._parts
        module, data, progress = parts.module, parts.data, self.batch_progress
        batch, _, _ = next(data_fetcher)
        index = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = data.on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), 0)
        batch = data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
        batch = data.on_after_batch_transfer(batch, 0)
        progress.increment_ready()
        self._begin_logging(batch)

        self._call("on_train_batch_start", parts.starts, batch, index)
        progress.increment_started()
        self._name("training_step")
        with parts.context():
            outputs = module.write_gradients(batch)
            steps = self.manual_optimization.optim_step_progress
            steps.increment_ready()
            self._call("on_before_optimizer_step", parts.before_steps, parts.optimizer)
            parts.optimizer.step()
            steps.increment_completed()
        progress.increment_processed()
        self._call("on_train_batch_end", parts.ends, outputs, batch, index)
        self._name(None)
        self._end_logging()
        progress.increment_completed()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate after the last batch."""
        if self._parts is None or self.batch_progress.is_last_batch or self.trainer.should_stop:
            super().on_advance_end(data_fetcher)
        else:
            self._batches_that_stepped += 1

    def _call(self, name: str, hooks: tuple[Hook, ...], *arguments: Any) -> None:
        """Call the callbacks that implement a hook."""
        assert self._parts is not None
        if hooks:
            self._name(name)
            for hook in hooks:
                hook(self.trainer, self._parts.module, *arguments)

    def _begin_logging(self, batch: Any) -> None:
        """Give `LightningModule.log` the batch, whose size weighs what is logged."""
        connector = self.trainer._logger_connector
        connector._first_loop_iter = connector._first_loop_iter is None
        self._results.batch, self._results.batch_size, self._results.dataloader_idx = batch, None, None

    def _end_logging(self) -> None:
        """Hand on what was logged at this step."""
        if any(logged.meta.on_step for logged in self._results.values()):
            self.trainer._logger_connector.on_batch_end()
        self._results.batch = self._results.batch_size = None

    def _name(self, name: str | None) -> None:
        """Tell `LightningModule.log` from which hook it is called; not by setattr, which looks for parameters."""
        assert self._parts is not None
        vars(self._parts.module)["_current_fx_name"] = name


def _parts_of(trainer: Any) -> _Parts | None:
    """What takes part in the steps of a training, or None if it is more than `BatchLoop` knows of."""
    module, data = trainer.lightning_module, trainer.datamodule
    if not isinstance(module, GLRModule):
        return None
    known = (
        RELEASE.startswith(TESTED)
        and type(module).training_step is GLRModule.training_step
        and not any(getattr(type(module), name) is not getattr(pl.LightningModule, name) for name in OF_MODULES)
        and isinstance(data, LightningImages)
        and type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) in (Precision, DoublePrecision, MixedPrecision)
        and type(trainer.profiler) is PassThroughProfiler
        and trainer.log_every_n_steps == 0
    )
    if not known:
        return None
    starts, before_steps, ends = (_implemented(trainer, name) for name in IN_BATCHES)
    plugin = trainer.precision_plugin
    context = nullcontext if type(plugin) is Precision else plugin.train_step_context  # that one's does nothing
    return _Parts(module, data, trainer.optimizers[0], context, starts, before_steps, ends)


def _implemented(trainer: Any, name: str) -> tuple[Hook, ...]:
    hooks = (getattr(callback, name) for callback in trainer.callbacks)
    return tuple(hook for hook in hooks if getattr(hook, "__func__", None) is not getattr(Callback, name))
