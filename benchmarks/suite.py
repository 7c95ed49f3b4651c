"""A suite: a kind of benchmark, with its cells, how they are evaluated, and its tables.

A configuration names its kind of suite (``kind: grid``); the class is registered in the entry-point
group ``invdiff.suites``.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from invdiff.benchmarks.schema import Cell, Record, Result, Task
from invdiff.plugins.registry import PluginError, load


@dataclass(frozen=True)
class Work(ABC):
    """What launchers evaluate the tasks of. It is sent to the processes that do, so it holds
    nothing but its name.

    Args:
        name: that its records state.
    """

    name: str

    @abstractmethod
    def evaluate(self, task: Task, folder: Path, context: Mapping[str, Any]) -> Sequence[Result]:
        """The result of each cell of a task, as plain data; pictures and the like are written into
        the folder. What is raised is recorded as the failure of these cells.

        Args:
            task: cells that are evaluated together.
            folder: of the records; relative names in results start there.
            context: plain data that results do not depend on, such as where files are.
        """


@dataclass(frozen=True)
class Suite(Work):
    """One kind of benchmark. Subclasses write :meth:`tasks`, :meth:`evaluate` and :meth:`report`.

    Args:
        name: under which it is registered; its records state it.

    Attributes:
        defaults: the configuration of ``invdiff bench --suite NAME`` where no file
            ``suite/NAME.yaml`` says one.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def tasks(self, config: Mapping[str, Any]) -> list[Task]:
        """The cells of a configuration, those that are evaluated together in one list.

        Raises:
            ValueError: a configuration that makes no sense; nothing has run then.
        """

    @abstractmethod
    def report(self, config: Mapping[str, Any], records: Sequence[Record]) -> str:
        """The records of a configuration as Markdown."""

    def context(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The context of evaluating cells, such as where files are; plain data as well. Results
        do not depend on it. By default nothing."""
        return {}

    def context_of(
        self, cell: Cell, source: str | None, network: str | None, allow_pickle: bool
    ) -> dict[str, Any]:
        """The same for the cell of a record. By default nothing.

        Args:
            cell: of the record.
            source: file, folder or glob of its images or data.
            network: file or folder of its network.
            allow_pickle: whether files may be read that can run code.

        Raises:
            ValueError: the cell needs files that are not given.
        """
        return {}


def make_suite(name: str) -> Suite:
    """A suite by the name of its kind.

    Raises:
        ValueError: nobody registers the name; what is registered is no :class:`Suite`.
    """
    found = load("suites", name)
    if not (inspect.isclass(found) and issubclass(found, Suite)):
        raise PluginError(
            f"suite {name!r} is {found!r}; register a subclass of invdiff.benchmarks.suite.Suite"
        )
    return found(name)
