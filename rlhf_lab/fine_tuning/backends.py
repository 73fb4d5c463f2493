"""The backend of a notebook, by the name in its parameters cell."""

from rlhf_lab.fine_tuning import Backend

NAMES = ("local", "openai")


def connect(name: str, **options) -> Backend:
    """`LocalBackend(**options)` for "local", `OpenAIBackend(**options)` for "openai". Raises ValueError for another
    name."""
    if name == "local":
        from rlhf_lab.fine_tuning.local import LocalBackend

        return LocalBackend(**options)
    if name == "openai":
        from rlhf_lab.fine_tuning.openai_backend import OpenAIBackend

        return OpenAIBackend(**options)
    raise ValueError(f"There is no backend {name!r}: it is {' or '.join(NAMES)}.")
