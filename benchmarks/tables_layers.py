"""Tables of single layers, and of whole networks on a GPU."""

from collections.abc import Callable
from typing import Any

from benchmarks.layer_rows import best_of_ours
from benchmarks.results_file import gpu_results, read_results
from benchmarks.table_cells import spread

Row = dict[str, Any]
Table = list[list[str]]
MICROSECONDS = ("", 0)  # how times are named and written
MOST = 12  # layers of a GPU that are shown; all are in its file


def layers_cpu() -> Table:
    """What the clamp costs each layer, and the share of the roofline that is reached."""
    heads = ["layer", "samples", "eager, µs", "compile, no clamp, µs", "sanitised, µs", "over eager"]
    table = [[*heads, "time over no clamp", "% of roofline"]]
    for row in read_results("layers_cpu")["rows"]:
        times = row["providers"]
        eager, plain, ours = (times[name]["median"] for name in ("eager", "unclamped compile", "sanitised"))
        cells = [spread(times[name], *MICROSECONDS) for name in ("eager", "unclamped compile", "sanitised")]
        ratios = [f"{eager / ours:.2f}×", f"{ours / plain:.2f}×"]
        table.append([row["layer"], str(row["batch"]), *cells, *ratios, _share(row, "sanitised")])
    return table


def layers_cpu_sums() -> Table:
    """The same, summed over each network: every layer as often as it occurs."""
    rows = read_results("layers_cpu")["rows"]
    names = {"unclamped eager": "eager, no clamp", "eager": "eager", "unclamped compile": "compile, no clamp"}
    names |= {"sanitised": "sanitised"}
    sums: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        for network, count in row["networks"].items():
            line = sums.setdefault((network, row["batch"]), dict.fromkeys((*names, "least"), 0.0))
            for name in names:
                line[name] += count * row["providers"][name]["median"]
            line["least"] += count * row["roofline_microseconds"]
    table = [["network", "samples", *(f"{name}, ms" for name in names.values()), "over eager", "% of roofline"]]
    for (network, batch), line in sums.items():
        cells = [f"{line[name] / 1e3:.2f}" for name in names]
        ratio, share = f"{line['eager'] / line['sanitised']:.2f}×", f"{100 * line['least'] / line['sanitised']:.0f}"
        table.append([network, str(batch), *cells, ratio, share])
    return table


def layers_gpu() -> Table:
    """The layers that take longest without us, the best of ours beside what torch makes of them."""
    heads = ["GPU", "layer", "samples", "library, no clamp, µs", "eager, µs", "compile, µs", "unit_fast, µs"]
    table = [[*heads, "over eager", "% of roofline"]]
    for device, figures in gpu_results("layers").items():
        timed = [row for row in figures["rows"] if "eager" in row.get("providers", {}) and best_of_ours(row)]
        timed.sort(key=lambda row: -max(row["networks"].values()) * row["providers"]["eager"]["median"])
        for row in timed[:MOST]:
            times, ours = row["providers"], best_of_ours(row)
            assert ours is not None, "rows without are left out above"
            shown = ("library", "eager", "compile", ours)
            cells = [spread(times[name], *MICROSECONDS) if name in times else "–" for name in shown]
            ratio = f"{times['eager']['median'] / times[ours]['median']:.2f}×"
            table.append([device, row["layer"], str(row["batch"]), *cells, ratio, _share(row, ours)])
    return table


def models_gpu() -> Table:
    """Whole networks on a GPU: milliseconds a call of ours, and how many times as fast as each other way."""
    table = [["GPU", "network", "samples", "unit_fast, ms", "images a second", "faster than"]]
    for device, figures in gpu_results("models").items():
        rows = figures["rows"]
        ratios_of = figures.get("ratios", {})
        for network, batch in sorted((case.split("/") for case in ratios_of), key=lambda case: (case[0], int(case[1]))):
            case = f"{network}/{batch}"
            ratios = ratios_of[case]
            ours = rows[f"{case}/unit_fast"]
            others = ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}×" for name, ratio in ratios.items())
            times = {f"{name}_ms": value / 1e3 for name, value in ours["microseconds"].items()}
            cells = [spread(times, digits=3), f"{ours['images_per_second']:,.0f}", others]
            table.append([device, network, batch, *cells])
    return table


def _share(row: Row, name: str) -> str:
    return f"{100 * row['share_of_roofline'][name]:.0f}"


TABLES: dict[str, Callable[[], Table]] = {
    "layers_cpu": layers_cpu,
    "layers_cpu_sums": layers_cpu_sums,
    "layers_gpu": layers_gpu,
    "models_gpu": models_gpu,
}
