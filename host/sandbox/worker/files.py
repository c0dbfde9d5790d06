"""The file tools by name. Each takes its schema's arguments and returns an answer, or raises ``Refused``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .listing import list_dir, remove_folder
from .paths import Roots
from .plain_files import Answer
from .reading import read_file, read_text
from .writing import append_file, edit_file, save_file, write_file

TOOLS: Final[dict[str, Callable[[Roots, Answer], Answer]]] = {
    "read_file": read_file,
    "read_text": read_text,
    "save_file": save_file,
    "write_file": write_file,
    "edit_file": edit_file,
    "append_file": append_file,
    "list_dir": list_dir,
    "remove_folder": remove_folder,
}
