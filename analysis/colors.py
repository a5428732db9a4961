"""Colors of the methods, the same in all figures and in the report. Methods without a color take an unused one."""

from collections.abc import Mapping

#: method -> its color on white and in the report's dark theme. People with protanopia, deuteranopia or tritanopia can
#: tell the eight colors apart, and each has a contrast of at least 3 with the background.
METHODS = {
    "darts": ("#5f637b", "#ffffff"),
    "darts-2nd": ("#002c7d", "#3d74ee"),
    "lambda-darts": ("#832000", "#c44200"),
    "lambda-darts-exact": ("#ba8e00", "#d3ae08"),
    "darts-minus": ("#01a69b", "#22b4a4"),
    "fair-darts": ("#0070d0", "#8ad1ff"),
    "idarts": ("#500029", "#8a6290"),
    "darts-pt": ("#9b6020", "#ffe350"),
}


def shade(method: str) -> str:
    """The color of a method on white, for a figure that shows only this method."""
    return METHODS[assign({"": method})[""]][0]


def assign(rows: Mapping[str, str]) -> dict[str, str]:
    """name of a row -> the method whose color the row takes: its own method, unless an earlier row has that color.

    More rows of the same method, for example in an ablation, take the remaining colors. Colors repeat after eight rows.

    Args:
        rows: name of a row -> its method.
    """
    chosen: dict[str, str] = {}
    for name, method in rows.items():
        if method in METHODS and method not in chosen.values():
            chosen[name] = method
    left = [method for method in METHODS if method not in chosen.values()]
    for number, name in enumerate(name for name in rows if name not in chosen):
        chosen[name] = left[number] if number < len(left) else list(METHODS)[number % len(METHODS)]
    return {name: chosen[name] for name in rows}
