"""submission.json of a deployed run: when it was started, with which code, and as which run of Flower's."""

from pathlib import Path

from pydantic import Field

from cmrfed.core.artifacts import write_json
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.validation import read_model

FILE = "submission.json"


class Submission(Section):
    """The content of submission.json."""

    digest: str
    """Of the experiment."""
    time: str
    flower_run: str | None = None
    """Number of Flower's run; None until it has one."""
    bundle: str | None = None
    """Digest of the code that went to the sites."""
    stopped: bool = False
    """Whether the coordinator's staff has stopped it."""
    resumes: int = Field(0, ge=0)
    """How often it was resumed without a new round since."""
    resumed_at: int | None = None
    """Rounds that were finished when it was last resumed."""

    def write(self, folder: Path) -> Path:
        """Write submission.json into the folder of the run."""
        return write_json(folder / FILE, self.model_dump(mode="json", exclude_defaults=True))


def read_submission(folder: Path) -> Submission:
    """Read the submission.json of a deployed run.

    Raises:
        DataError: There is none, or it is damaged.
    """
    return read_model(folder / FILE, Submission, do="remove it, and submit the run again: it resumes")
