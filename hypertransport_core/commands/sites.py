"""Count and list the places of a model family that can be steered. Needs ComfyUI beside it, but no weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..backbones.families import FAMILIES, family_network
from ..sites import SITE_SETS, Site, find_sites, total_channels
from . import CommandError
from .options import write_numbers

FLOATS_PER_CHANNEL = 2  # a scale and a shift


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--family", choices=FAMILIES, help="the architecture; without it the families are printed")
    parser.add_argument(
        "--set",
        choices=SITE_SETS,
        help="which kinds of sites (default: every set in the table, attention_mlp with --json, everything with "
        "--list)",
    )
    parser.add_argument("--sites", metavar="REGEX", help="only sites in whose path this regular expression is found")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", metavar="FILE", help="write family, set, sites and channels to FILE, - for the screen")
    form.add_argument("--list", action="store_true", help="print path, kind and channels of every site")


def run(options: argparse.Namespace) -> int:
    """Print families, a table of sets, or sites, as asked for."""
    if options.family is None:
        if options.set or options.sites is not None or options.list or options.json:
            raise CommandError(f"No family is named, expected --family with one of {', '.join(FAMILIES)}.")
        _print_families()
        return 0
    network = family_network(options.family)
    default = "attention_mlp" if options.json else "everything"
    site_set = options.set or default
    sites = find_sites(network, site_set, pattern=options.sites)  # also refuses a pattern that fits nothing
    if options.json:
        numbers = {"family": options.family, "set": site_set, "sites": len(sites), "channels": total_channels(sites)}
        write_numbers(options.json, numbers)
    elif options.list:
        _print_list(sites)
    else:
        every = find_sites(network, "everything", pattern=options.sites)
        _print_table([options.set] if options.set else list(SITE_SETS), every)
    return 0


def _print_families() -> None:
    width = max(map(len, FAMILIES))
    for name, family in FAMILIES.items():
        print(f"{name:{width}}  {family.checkpoints}")
    print("See `--family NAME`, `--list`, `--help`.")


def _print_table(site_sets: Sequence[str], every: Sequence[Site]) -> None:
    width = max(map(len, ("set", *site_sets)))
    print(f"{'set':{width}}  sites   channels  floats per concept")
    for name in site_sets:
        chosen = [site for site in every if site.kind in SITE_SETS[name]]
        channels = total_channels(chosen)
        print(f"{name:{width}}  {len(chosen):5}  {channels:9,}  {FLOATS_PER_CHANNEL * channels:18,}")


def _print_list(sites: Sequence[Site]) -> None:
    path, kind = (max(len(getattr(site, name)) for site in sites) for name in ("path", "kind"))
    for site in sites:
        print(f"{site.path:{path}}  {site.kind:{kind}}  {site.channels:5}")
