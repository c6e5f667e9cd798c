"""Where the files that come with the course lie."""
import os
from pathlib import Path


def data_folder() -> Path:
    """The folder that holds `mnist/`, `weights/` and `tokenizer/`: $DDPM_EDU_DATA, or `data/` beside the package."""
    return Path(os.environ.get("DDPM_EDU_DATA") or Path(__file__).parent.parent / "data").expanduser()
