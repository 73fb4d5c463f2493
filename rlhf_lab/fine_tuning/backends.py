"""The backend of a notebook, by the name in its parameters cell."""

from rlhf_lab.fine_tuning import Backend


def address(name: str) -> str:
    """Where "local" or "openai" is to be found now: what `connect` is given, and what tells one server's models from
    another's. Raises ValueError for another name."""
    if name == "local":
        return name
    if name == "openai":
        from rlhf_lab.fine_tuning.openai_backend import server_address

        return server_address()
    raise ValueError(f"There is no backend {name!r}: it is local or openai.")


def connect(address: str, **options) -> Backend:
    """`LocalBackend(**options)` for "local", else `OpenAIBackend(address, **options)`."""
    if address == "local":
        from rlhf_lab.fine_tuning.local import LocalBackend

        return LocalBackend(**options)
    from rlhf_lab.fine_tuning.openai_backend import OpenAIBackend

    return OpenAIBackend(address, **options)
