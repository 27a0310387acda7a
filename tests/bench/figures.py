"""What `make bench` makes of its samples: percentiles, rows with their goals, the table, gnuplot's script. Nothing here measures.

Samples are {column: [seconds]} with the columns of COLUMNS. ALONE is what there is without any init: COMMAND itself as PID 1,
or an idle interpreter.
"""

import math
import statistics
from collections import namedtuple

US, ALONE = "pyinit1", "alone"
COLUMNS = (US, "tini", "dumb-init", "catatonit", "zinit-pid1", ALONE)
BARE = "python3 -IS -c pass"

# SPEC.md 12
WHOLE_GOALS = {"PID 1": 2.5, "a plain process": 2.75}       # times BARE
SIGNAL_GOAL, SIGNAL_WORST = 3, 0.0005                       # times tini's median; seconds, the 99th percentile
WAKEUPS_GOAL = 0
MEMORY_GOALS = {"COMMAND": 3.0, "COMMAND, a plain process": 3.5, "a kept server": 4.5}  # MB beyond an idle interpreter
ORPHANS_GOAL = 1.2                                          # times tini's time
STOP_GOAL = 0.05                                            # seconds beyond COMMAND's own time

# One line of the table. goal: in words, empty if nothing is promised; met: None then. cells: {column: text}.
Row = namedtuple("Row", "what goal met cells")


def percentile(values, share):
    """The smallest value that is not exceeded by `share` per cent of the values."""
    return sorted(values)[max(0, math.ceil(len(values) * share / 100) - 1)]


def digits(value):
    """Three significant digits, without an exponent: 0.0512, 7.18, 23.1, 1234."""
    return "%.*f" % (max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0, value)


def spreads(samples, scale):
    """The cells of samples: median and 99th percentile, times `scale`."""
    return {name: "%s / %s" % (digits(statistics.median(values) * scale), digits(percentile(values, 99) * scale))
            for name, values in samples.items()}


def ratios(samples, base):
    """{column: its median over the median of the column `base`}, without that column."""
    least = statistics.median(samples[base])
    return {name: statistics.median(values) / least for name, values in samples.items() if name != base}


def cells(values):
    return {name: digits(value) for name, value in values.items()}


# ---- the rows

def whole_rows(place, samples):
    """A whole run around `true`: seconds; ALONE is BARE, in the place of any init."""
    times = ratios(samples, ALONE)
    return [Row("around `true` as %s, ms, median / 99 %%" % place, "", None, spreads(samples, 1e3)),
            Row("times `%s`" % BARE, "≤ %g" % WHOLE_GOALS[place], times[US] <= WHOLE_GOALS[place], cells(times))]


def signal_rows(samples):
    """A signal's way through to COMMAND: seconds. Without tini only the 99th percentile is judged."""
    met = percentile(samples[US], 99) <= SIGNAL_WORST
    if "tini" in samples:
        met = met and ratios(samples, "tini")[US] <= SIGNAL_GOAL
    return [Row("a signal's way to COMMAND, µs, median / 99 %", "≤ %g tini / ≤ %g" % (SIGNAL_GOAL, SIGNAL_WORST * 1e6), met,
                spreads(samples, 1e6))]


def idle_rows(kind, seconds, wakeups):
    """How often each was woken: {column: count}."""
    return [Row("wake-ups in %g s idle, %s" % (seconds, kind), "%d" % WAKEUPS_GOAL, wakeups[US] <= WAKEUPS_GOAL,
                {name: str(count) for name, count in wakeups.items()})]


def memory_rows(kind, resident):
    """Resident memory: {column: MB}; ALONE is an idle interpreter. Only an init in Python is compared with that."""
    beyond = resident[US] - resident[ALONE]
    return [Row("resident memory, MB, %s" % kind, "", None, cells(resident)),
            Row("beyond an idle `python3 -IS`", "≤ %g" % MEMORY_GOALS[kind], beyond <= MEMORY_GOALS[kind], {US: digits(beyond)})]


def orphan_rows(count, samples):
    """`count` orphans made and reaped: seconds of each round. A round that leaves a zombie never ends."""
    rows = [Row("%d orphans, none left a zombie, s" % count, "", None, cells({name: sum(each) for name, each in samples.items()}))]
    if "tini" in samples:
        times = {name: statistics.median(one / tini for one, tini in zip(each, samples["tini"]))
                 for name, each in samples.items()}
        rows.append(Row("times tini's", "≤ %g" % ORPHANS_GOAL, times[US] <= ORPHANS_GOAL, cells(times)))
    return rows


def stop_rows(samples):
    """`docker stop`: seconds; ALONE is COMMAND itself as PID 1, and what it takes is COMMAND's own time."""
    own = statistics.median(samples[ALONE])
    beyond = {name: statistics.median(each) - own for name, each in samples.items() if name != ALONE}
    return [Row("`docker stop` of a prompt COMMAND, ms, median / 99 %", "", None, spreads(samples, 1e3)),
            Row("beyond COMMAND's own", "≤ %g" % (STOP_GOAL * 1e3), beyond[US] <= STOP_GOAL,
                {name: "%.0f" % (value * 1e3) for name, value in beyond.items()})]


def burst_rows(count, outcomes):
    """Bursts of one signal with others among them, for a busy COMMAND: {column: [True where nothing was lost]}."""
    return [Row("bursts of %d signals of which none was lost" % count, "all", all(outcomes[US]),
                {name: "%d of %d" % (sum(each), len(each)) for name, each in outcomes.items()})]


# ---- the table

def goal_in_words(row):
    return row.goal + {None: "", True: ": met", False: ": **missed**"}[row.met]


def table(rows):
    """The rows as a table in Markdown, its columns aligned; a column without a figure is left out."""
    columns = [name for name in COLUMNS if any(name in row.cells for row in rows)]
    lines = [["what", "goal", *columns]]
    lines += [[row.what, goal_in_words(row), *(row.cells.get(name, "") for name in columns)] for row in rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths[:2]] + ["-" * (width - 1) + ":" for width in widths[2:]])
    texts = [[text.ljust(width) if at < 2 else text.rjust(width) for at, (text, width) in enumerate(zip(line, widths))]
             for line in lines]
    return "".join("| %s |\n" % " | ".join(line) for line in texts)


# ---- the picture

SHARES = [step / 2 for step in range(201)]  # per cent: the points of a curve


def quoted(text):
    """A string for gnuplot, as it stands."""
    return "'%s'" % text.replace("'", "''")


def gnuplot_script(panels, path):
    """gnuplot's commands that draw {title: {curve: [seconds]}} side by side into the SVG `path`."""
    script = ["set terminal svg size %d,420 background 'white' font 'sans-serif,13'" % (520 * len(panels)),
              "set output " + quoted(path), "set multiplot layout 1,%d" % len(panels),
              "set logscale x", "set grid", "set key below", "set yrange [0:100]"]
    for title, samples in panels.items():
        blocks = {name: "$data%d" % number for number, name in enumerate(samples)}
        for name, values in samples.items():
            points = ["%.6g %g" % (percentile(values, share) * 1e3, share) for share in SHARES]
            script += ["%s << END" % blocks[name], *points, "END"]
        lines = ["%s using 1:2 with lines linewidth 2 title %s" % (block, quoted(name)) for name, block in blocks.items()]
        script += ["set title %s noenhanced" % quoted(title), "set xlabel 'ms at most'", "set ylabel '%'", "plot " + ", ".join(lines)]
    return "\n".join([*script, "unset multiplot", ""])
