"""Progress of a run on stderr."""

from __future__ import annotations

from invdiff.sampling import Callback, Progress


class ProgressBar:
    """A progress bar over all steps of all chains, on stderr."""

    def __init__(self, show: bool, steps: int, chains: int) -> None:
        from tqdm.auto import tqdm

        self.bar = tqdm(total=steps * chains, disable=not show, unit="step", smoothing=0.05)
        self.scale = chains

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def watch(self, callback: Callback | None, chains: int) -> Callback:
        """A callback that moves the bar and then calls the user's."""

        def on_step(p: Progress) -> None:
            self.bar.update(chains)
            if callback is not None:
                callback(p)

        return on_step
