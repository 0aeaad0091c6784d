"""Less time and memory for many fits: TensorFlow keeps some 40 MB of each, and compiles for a second."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

FEW = 10  # steps: without compiling a fit of no more takes half as long


def compile_above(steps: int) -> None:
    """Let fits of this process that take no more than so many steps go without compiling."""
    from ivis_spark.train import loop

    init = getattr(loop._Run.__init__, "as_it_is", loop._Run.__init__)

    def init_run(run: Any, model: Any, dataset: Any, steps_per_epoch: int, config: Any, *more: Any) -> None:
        init(run, model, dataset, steps_per_epoch, config, *more)
        if steps_per_epoch * config.epochs <= steps:
            run._run_steps = run._run_steps.python_function

    init_run.as_it_is = init  # type: ignore[attr-defined]
    loop._Run.__init__ = init_run  # type: ignore[method-assign]


def _call(function: Callable[[], None]) -> None:
    compile_above(FEW)
    function()


def in_a_process(function: Callable[[], None]) -> None:
    """Call a function of a module in a new process, and raise what it raises."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(_call, function).result()
