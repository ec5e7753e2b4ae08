"""The page's tables of timings: one for each framework."""


def timings(lines: list[dict]) -> list[str]:
    return []
