"""Errors a user can mend. Knows nothing else."""


class InputError(ValueError):
    """Says what came, what was wanted and which flag mends it; scripts print it without a traceback."""


def check_least(options: object, least: float, *names: str) -> None:
    """Refuse options below `least`; one that is not given (None) is none.

    Raises:
        InputError: names the first.
    """
    for name in names:
        value = vars(options)[name]
        if value is not None and not value >= least:  # NaN is refused too
            raise InputError(f"Got --{name} {value}; wanted {least} or more")


def check_above(options: object, bound: float, *names: str) -> None:
    """The same for options that are to be above `bound`."""
    for name in names:
        value = vars(options)[name]
        if value is not None and not value > bound:
            raise InputError(f"Got --{name} {value}; wanted more than {bound}")
