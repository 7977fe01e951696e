"""How are numbers drawn? As inline SVG in a calm style, both of them in this file.

Letters: N points of a series · S series · R rows · C columns.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 440.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 12.0, 44.0
COLOURS = 8
MANY_POINTS = 40
"""Beyond this, points are drawn as a line only, and answer to the pointer."""
MOST_POINTS = 240
"""Beyond this, neighbouring points are averaged."""

# Okabe and Ito's colours, which colour-blind readers tell apart: yellow darkened to be seen on
# white, all lightened on black.
STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#596474;--rule:#dce1e8;--paper:#fff;
--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#b8609a;--s4:#b07a00;--s5:#3fa0dc;--s6:#6b7280;
--s7:#7a6a00;--heat:#0b5fa5}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#a2adbb;--rule:#313945;
--paper:#14181e;--s0:#4ea3e6;--s1:#f0813a;--s2:#2fc497;--s3:#dd97c4;--s4:#eeb544;--s5:#a3dbfa;
--s6:#a3abb8;--s7:#d8cc5a;--heat:#62b0f2}}
.s0{--s:var(--s0)}.s1{--s:var(--s1)}.s2{--s:var(--s2)}.s3{--s:var(--s3)}.s4{--s:var(--s4)}
.s5{--s:var(--s5)}.s6{--s:var(--s6)}.s7{--s:var(--s7)}.ink{--s:var(--ink)}
body{margin:0 auto;padding:1.5rem 1.1rem 4rem;max-width:68rem;background:var(--paper);
color:var(--ink);font:16px/1.55 system-ui,sans-serif}
h1{margin:0;font-size:1.6rem;overflow-wrap:anywhere}h2{margin:2.8rem 0 1rem;font-size:1.2rem}
h3{margin:0 0 .3rem;font-size:.95rem}.soft,dt,figcaption{color:var(--soft)}
.status{font-size:.85rem;font-weight:500;border:1px solid var(--soft);border-radius:1rem;
padding:.1rem .6rem;vertical-align:.25em}.result{font-size:1.5rem;margin:.6rem 0 0}
.result+p{margin:0}dl{display:flex;flex-wrap:wrap;gap:.6rem 2rem}dt{font-size:.8rem}dd{margin:0}
.unread{border-left:4px solid var(--s1);padding:.4rem 1rem .4rem 2rem;overflow-wrap:anywhere}
h2+div:not(.controls){display:grid;gap:2rem 2.2rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
figure{margin:0;min-width:0;max-width:40rem}figcaption{font-size:.8rem;margin-top:.25rem}
svg{display:block;width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
svg .cell{fill:var(--ink)}svg .on{fill:var(--paper)}.grid{stroke:var(--rule)}
.axis{stroke:var(--soft)}.guide{stroke:var(--soft);stroke-dasharray:2 4;stroke-opacity:.6}
.line{fill:none;stroke:var(--s);stroke-width:1.8;stroke-linejoin:round}.strong{stroke-width:3}
.line.dashed{stroke-dasharray:6 4}.dot,.hit:hover,.bar{fill:var(--s)}.hit{fill:transparent}
.over{fill-opacity:.45;stroke:var(--s)}.heat{fill:var(--heat);stroke:var(--rule)}
.marked{fill:none;stroke:var(--s1);stroke-width:2.5}
.legend{display:flex;flex-wrap:wrap;gap:.1rem .9rem;margin:0 0 .2rem;padding:0;list-style:none;
font-size:.8rem}.legend i{display:inline-block;width:1.3rem;border-top:3px solid var(--s);
vertical-align:.25em;margin-right:.35rem}.legend .dashed i{border-top-style:dashed}
.empty{color:var(--soft);border:1px dashed var(--rule);border-radius:8px;padding:2.5rem 1rem;
margin:0;text-align:center}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.35rem 1rem .35rem 0;
border-bottom:1px solid var(--rule)}th{font-weight:500}
.text{white-space:pre-wrap;overflow-wrap:anywhere;min-width:9rem}.right{color:var(--s0)}
.wrong{color:var(--s1)}pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.9rem}
.controls{display:flex;flex-wrap:wrap;gap:.6rem 1rem;align-items:center}
button,select{font:inherit;padding:.3rem .8rem;max-width:14rem}details{margin-top:2.8rem}
"""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One line of a chart."""

    name: str
    x: Floats
    """[N]"""
    y: Floats
    """[N]; the line has a gap where this is not finite."""
    colour: int = 0
    """Place in the palette; -1 is the colour of the text."""
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values to the drawing's units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) that enclose [low, high]."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Twelve digits: 3 * 0.1 is to read 0.3.
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def number(value: float, *, percent: bool = False) -> str:
    """Four significant digits, as a person writes them: 0.0213, 1,204, 48.5 %."""
    if percent:
        return f"{100 * value:.4g} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """1 h 05 min, 2 min 03 s or 4.2 s."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    percent: bool = False,
    guides: Sequence[float] = (),
    note: str = "",
) -> str:
    """Lines over a whole-numbered x; `guides` are x where a round begins."""
    drawn = [_thinned(one) for one in series if np.isfinite(one.y).any()]
    if not drawn:
        return empty(title)
    if any(len(one.y) > MOST_POINTS for one in series):
        note = f"{note} Each point is the mean of neighbouring ones.".strip()
    x_low, x_high = _widened(*_range([one.x for one in drawn]))
    y_low, y_high = _range([one.y for one in drawn])
    marks = _y_ticks(y_low, y_high, percent=percent)
    across = Scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    up = Scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    parts = [
        _y_axis(up, marks, y_label, percent=percent),
        _x_axis(across, _whole(x_low, x_high), x_label),
        *(_rule(across(x), TOP, across(x), HEIGHT - BOTTOM, "guide") for x in guides),
        *(_line(one, across, up, percent=percent) for one in drawn),
    ]
    legend = [(one.name, one.colour, _is_dashed(one)) for one in drawn]
    return figure(title, _svg(title, parts), legend=legend, note=note)


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Floats,
    *,
    marked: Collection[tuple[int, int]] = (),
    note: str = "",
) -> str:
    """Shares [R, C] of judges per source as shades and percentages; `marked` is outlined."""
    if not values.size:
        return empty(title)
    label, row_height = 96.0, 34.0
    width = (WIDTH - label - 4) / len(columns)
    tilted = max(len(name) for name in columns) * 7 > width
    top = 76.0 if tilted else 40.0
    parts = [_text(0, 14, "judge →", "start"), _text(0, top - 8, "source ↓", "start")]
    for c, name in enumerate(columns):
        parts.append(_column_name(name, label + (c + 0.5) * width, top - 8, tilted=tilted))
    for r, name in enumerate(rows):
        y = top + r * row_height
        parts.append(_text(label - 8, y + 22, _short(name, 13), "end", tip=name))
        for c, value in enumerate(values[r]):
            tip = f"{name}, {columns[c]}: {number(float(value), percent=True)}"
            parts.append(_cell(label + c * width, y, width, row_height, float(value), tip))
    for r, c in sorted(marked):
        x, y = label + c * width, top + r * row_height
        parts.append(_rect(x + 1.5, y + 1.5, width - 3, row_height - 3, "marked", rx=3))
    return figure(title, _svg(title, parts, top + len(rows) * row_height + 4), note=note)


def histogram(
    title: str, groups: Mapping[str, Floats], *, x_label: str, bins: int = 24, note: str = ""
) -> str:
    """Each group's finite values as shares of that group, over common bins."""
    drawn = [(s, name, values) for s, (name, values) in enumerate(groups.items()) if values.size]
    if not drawn:
        return empty(title)
    low, high = _widened(*_range([values for _, _, values in drawn]))
    edges = np.linspace(low, high, bins + 1)
    shares = [np.histogram(values, edges)[0] / values.size for _, _, values in drawn]
    across = Scale(low, high, LEFT, WIDTH - RIGHT)
    marks = ticks(0.0, float(max(share.max() for share in shares)), about=4)
    up = Scale(0.0, marks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_y_axis(up, marks, "share of responses", percent=True)]
    for (s, name, _), share in zip(drawn, shares, strict=True):
        for b in np.flatnonzero(share):
            x, y = across(edges[b]), up(share[b])
            tip = f"{name}: {number(share[b], percent=True)} from {number(edges[b])} to "
            tip += number(edges[b + 1])
            size = (across(edges[b + 1]) - x, up(0.0) - y)
            parts.append(_rect(x, y, *size, f"bar over s{s}", tip))
    inside = [mark for mark in ticks(low, high) if low <= mark <= high]
    parts.append(_x_axis(across, inside, x_label))
    legend = [(f"{name} ({values.size:,})", s, False) for s, name, values in drawn]
    return figure(title, _svg(title, parts), legend=legend, note=note)


def bars(title: str, values: Mapping[str, float], *, x_label: str, note: str = "") -> str:
    """One horizontal bar per name, with its value and its share of the sum; values >= 0."""
    total = sum(values.values())
    if total <= 0:
        return empty(title)
    label, row_height = 96.0, 30.0
    marks = ticks(0.0, max(values.values()))
    across = Scale(0.0, marks[-1], label, WIDTH - 104)
    height = len(values) * row_height + BOTTOM
    parts = []
    for r, (name, value) in enumerate(values.items()):
        y = r * row_height
        said = f"{number(value)} ({100 * value / total:.0f} %)"
        parts.append(_text(label - 8, y + 19, _short(name, 13), "end", tip=name))
        parts.append(_rect(label, y + 4, across(value) - label, 21, "bar s0", f"{name}: {said}"))
        parts.append(_text(across(value) + 6, y + 19, said, "start"))
    parts.append(_x_axis(across, marks, x_label, floor=height - BOTTOM))
    return figure(title, _svg(title, parts, height), note=note)


def figure(
    title: str, body: str, *, legend: Sequence[tuple[str, int, bool]] = (), note: str = ""
) -> str:
    """A drawing with its title, its legend of (name, colour, dashed) and what to know of it."""
    keys = "".join(
        f'<li class="{_tone(colour)}{" dashed" if dashed else ""}"><i></i>{escape(name)}</li>'
        for name, colour, dashed in legend
    )
    listed = f'<ul class="legend">{keys}</ul>' if keys else ""
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f"<figure><h3>{escape(title)}</h3>{listed}{body}{caption}</figure>"


def empty(title: str) -> str:
    """What stands where a chart will be."""
    return figure(title, '<p class="empty">not yet</p>')


def _range(arrays: Sequence[Floats]) -> tuple[float, float]:
    values = np.concatenate(arrays)
    values = values[np.isfinite(values)]
    return float(values.min()), float(values.max())


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range with room in it: a single value lies in its middle."""
    # Ranges narrower than this are rounding noise, and ticks of them would all read the same.
    if high - low > 1e-6 * max(abs(low), abs(high)):
        return low, high
    room = abs(low) / 2 or 0.5
    return low - room, high + room


def _y_ticks(low: float, high: float, *, percent: bool) -> list[float]:
    low, high = _widened(low, high)
    return ticks(max(low, 0.0), min(high, 1.0)) if percent else ticks(low, high)


def _whole(low: float, high: float) -> list[float]:
    return [mark for mark in ticks(low, high) if low <= mark <= high and mark == int(mark)]


def _thinned(series: Series) -> Series:
    if len(series.y) <= MOST_POINTS:
        return series
    parts = np.array_split(np.arange(len(series.y)), MOST_POINTS)
    present = [series.y[part][np.isfinite(series.y[part])] for part in parts]
    x = np.array([series.x[part].mean() for part in parts])
    return replace(series, x=x, y=np.array([y.mean() if y.size else math.nan for y in present]))


def _line(series: Series, across: Scale, up: Scale, *, percent: bool) -> str:
    x, y = series.x, series.y
    there = np.isfinite(y)
    look = f"{_tone(series.colour)}{' strong' if series.strong else ''}"
    look += " dashed" if _is_dashed(series) else ""
    parts = []
    for piece in np.split(np.arange(y.size), np.flatnonzero(np.diff(there)) + 1):
        if not there[piece[0]]:
            continue
        spots = [(across(float(x[n])), up(float(y[n]))) for n in piece]
        if len(spots) > 1:
            path = " ".join(f"{left:.1f},{top:.1f}" for left, top in spots)
            parts.append(f'<polyline class="line {look}" points="{path}"/>')
        # A lone point has no line to be seen by.
        kind = "dot" if y.size <= MANY_POINTS or len(spots) == 1 else "hit"
        for n, (left, top) in zip(piece, spots, strict=True):
            tip = f"{series.name}, {x[n]:g}: {number(float(y[n]), percent=percent)}"
            parts.append(
                f'<circle class="{kind} {_tone(series.colour)}" cx="{left:.1f}" cy="{top:.1f}" '
                f'r="{3 if kind == "dot" else 4}"><title>{escape(tip)}</title></circle>'
            )
    return "".join(parts)


def _y_axis(up: Scale, marks: Sequence[float], label: str, *, percent: bool) -> str:
    parts = [_rule(LEFT, up(mark), WIDTH - RIGHT, up(mark), "grid") for mark in marks]
    parts += [_text(LEFT - 6, up(mark) + 4, number(mark, percent=percent), "end") for mark in marks]
    middle = (up.start + up.end) / 2
    turn = f' transform="rotate(-90 11 {middle:.1f})"'
    return "".join(parts) + _text(11, middle, label, "middle", extra=turn)


def _x_axis(
    across: Scale, marks: Sequence[float], label: str, floor: float = HEIGHT - BOTTOM
) -> str:
    parts = [_rule(across.start, floor, across.end, floor, "axis")]
    for mark in marks:
        parts.append(_rule(across(mark), floor, across(mark), floor + 4, "axis"))
        parts.append(_text(across(mark), floor + 18, number(mark), "middle"))
    parts.append(_text((across.start + across.end) / 2, floor + 37, label, "middle"))
    return "".join(parts)


def _cell(x: float, y: float, width: float, height: float, value: float, tip: str) -> str:
    if not math.isfinite(value):
        return ""
    shade = f' fill-opacity="{value:.2f}"'
    shown = _rect(x + 1, y + 1, width - 2, height - 2, "heat", tip, rx=3, extra=shade)
    if width < 24:
        return shown
    # From here on the shade is nearer to the heat colour than to the paper.
    kind = "on" if value > 0.7 else "cell"
    return shown + _text(x + width / 2, y + 22, f"{100 * value:.0f}", "middle", kind=kind)


def _column_name(name: str, x: float, y: float, *, tilted: bool) -> str:
    if not tilted:
        return _text(x, y, name, "middle")
    turn = f' transform="rotate(35 {x:.1f} {y:.1f})"'
    return _text(x, y, _short(name, 14), "end", tip=name, extra=turn)


def _text(
    x: float, y: float, text: str, anchor: str, *, kind: str = "", tip: str = "", extra: str = ""
) -> str:
    look = f' class="{kind}"' if kind else ""
    title = f"<title>{escape(tip)}</title>" if tip and tip != text else ""
    return (
        f'<text{look} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>'
        f"{escape(text)}{title}</text>"
    )


def _rect(
    x: float,
    y: float,
    width: float,
    height: float,
    kind: str,
    tip: str = "",
    *,
    rx: int = 0,
    extra: str = "",
) -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    corner = f' rx="{rx}"' if rx else ""
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        f"{corner}{extra}>{title}</rect>"
    )


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _svg(title: str, parts: Sequence[str], height: float = HEIGHT) -> str:
    size = f"0 0 {WIDTH:.0f} {height:.0f}"
    return f'<svg viewBox="{size}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _tone(colour: int) -> str:
    return f"s{colour % COLOURS}" if colour >= 0 else "ink"


def _is_dashed(series: Series) -> bool:
    # The second time round the palette.
    return series.colour >= COLOURS


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
