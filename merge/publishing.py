"""A merge that goes to the Hub: each file is on its way as soon as it is written, and one commit ends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, ParamsmithError, printable
from paramsmith.lineage import NAME, README, RECIPE, lineage_of
from paramsmith.progress import Progress
from paramsmith.seal import ours
from paramsmith.upload import Pushed, Upload, files_of

from .cardtext import published_recipe
from .describe import check_licences, describe
from .recording import completed

if TYPE_CHECKING:
    from .job import Job
    from .options import Push


class Publication:
    """The upload of one merge while it is made."""

    def __init__(self, upload: Upload, push: Push) -> None:
        self._upload, self._push = upload, push
        self._sent: set[str] = set()
        self.warnings: tuple[str, ...] = ()

    def file(self, path: Path) -> None:
        """A weight file is complete."""
        self._sent.add(path.name)
        self._upload.add(path.name, path)

    def finish(self, folder: Path) -> Pushed:
        """Send the card and what else is left, and commit. The folder stays as it is, whatever happens."""
        try:
            self._upload.check()
            files, self.warnings = to_publish(folder, self._push.target.repo, self._push.licence)
            for name, source in files.items():
                if name not in self._sent:
                    self._upload.add(name, source)
            return self._upload.commit(f"Upload {folder.resolve().name} with paramsmith")
        except (ParamsmithError, KeyboardInterrupt) as problem:
            again = f"the merge is in {printable(folder)}; to send it: paramsmith push"
            if isinstance(problem, KeyboardInterrupt):
                problem.__notes__ = [again]
                raise
            problem.hint = f"{problem.hint}; {again}" if problem.hint else again
            raise


def to_publish(
    folder: Path, repo: str, licence: str | None = None, progress: Progress | None = None
) -> tuple[dict[str, Path | bytes], tuple[str, ...]]:
    """What is pushed of a merged folder, by name: its files, with lineage, card and a recipe that names no local path.

    Also the warnings. A card of somebody's own stays as it is. Raises what `describe` does; InvalidInput for a licence
    beside such a card.
    """
    files: dict[str, Path | bytes] = {**files_of(folder)}
    card = folder / README
    if README not in files or ours(card):
        made = describe(folder, licence=licence, repo=repo, progress=progress)
        return {**files, **made.files}, made.warnings
    if licence is not None:
        fact = f"{printable(card, 400)}: was written or edited by somebody, and says the licence itself"
        raise InvalidInput(fact, "leave --license out, or set license: in the file")
    lineage, warnings = completed(lineage_of(folder), folder, progress)
    return {**files, NAME: lineage.to_bytes(), RECIPE: published_recipe(lineage).encode()}, warnings


@contextmanager
def publication(push: Push, job: Job, output: Path) -> Iterator[Publication]:
    """The publication of a merge that is about to run, once its licence and its target were found right."""
    if output.suffix == ".safetensors":
        raise InvalidInput(f"{printable(output)}: a single file has no card", "to push, name a folder: -o OUT")
    inputs = [*([job.base] if job.base else []), *job.models]
    check_licences([each for each in inputs if isinstance(each, Checkpoint)], push.licence)
    with Upload(push.target, fresh=True) as upload:
        yield Publication(upload, push)
