"""What to say where the packages of the extra `experiments` are not installed."""

import importlib.util

EXPERIMENTS = ("flax", "matplotlib", "rich", "sklearn", "threadpoolctl", "tqdm", "tyro")


def missing_extra(package: str, needed: tuple[str, ...] = EXPERIMENTS) -> str | None:
    """Return rule and remedy if a module that `package` imports is not installed."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return (
        f"{package} needs the extra 'experiments', of which {', '.join(missing)} cannot be "
        "imported; install it: pip install 'egd-optax[experiments]'"
    )
