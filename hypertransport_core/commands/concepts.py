"""List, show and check concepts: the shipped ones or a list of the user's own."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace

from ..concepts import BUILTIN, Concept, ConceptSplit, builtin_concepts, generic_scenes, load_concepts, split_concepts
from ..concepts.builtin import CATEGORIES, PROMPTS_PER_CLASS, concept_words
from ..concepts.checks import Problem, check
from ..concepts.tokens import token_counter
from . import CommandError
from .options import write_numbers

GENERIC = "generic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--concepts",
        default="styles-777",
        metavar="NAME|FILE",
        help=f"{' or '.join(BUILTIN)}, or a .csv, .json or .toml file (default: styles-777)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look for duplicates, test concepts that training names, bad grammar and more; problems go to stderr, and the "
        "exit code is 1 if there are any. Of the shipped lists, both styles of prompts are checked",
    )
    parser.add_argument("--json", metavar="FILE", help="with --check: write the numbers to FILE, - for the screen")
    parser.add_argument("--list", action="store_true", help="print every concept with its category and its part")
    parser.add_argument(
        "--prompts", metavar="NAME", help=f"print the prompts of one concept; '{GENERIC}' for the generic scenes"
    )


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; without any of --check, --list and --prompts print the categories."""
    if options.json and not options.check:
        raise CommandError("--json is given without --check, expected both: add --check.")
    concepts = _read(options.concepts)
    split = split_concepts(concepts)
    if options.list:
        _print_list(split)
    if options.prompts is not None:
        print("\n".join(_prompts(concepts, options.prompts)))
    if options.check:
        return _check(options.concepts, concepts, split, options.json)
    if not options.list and options.prompts is None:
        _print_categories(split)
    return 0


def _read(name: str) -> tuple[Concept, ...]:
    """The concepts with their prompts; those of a file that names none get the generic scenes."""
    if name in BUILTIN:
        return builtin_concepts(name)
    scenes = generic_scenes(PROMPTS_PER_CLASS)
    return tuple(
        c if c.prompts else replace(c, prompts=tuple(f"{scene}, {c.name}" for scene in scenes))
        for c in load_concepts(name)
    )


def _print_list(split: ConceptSplit) -> None:
    parts = {
        c.name: "test" if part is split.heldout else "train"
        for part in (split.train, split.validation, split.heldout)
        for c in part
    }
    width = max(map(len, parts))
    for concept in sorted(split.everything, key=lambda c: (c.category, c.name)):
        print(f"{concept.name:{width}}  {parts[concept.name]:5}  {concept.category}")


def _print_categories(split: ConceptSplit) -> None:
    every, test = (Counter(c.category for c in part) for part in (split.everything, split.heldout))
    width = max(map(len, (*every, "generic")))
    print(f"{'category':{width}}  concepts  test  train")
    for category, count in every.most_common():
        print(f"{category:{width}}  {count:8}  {test[category]:4}  {count - test[category]:5}")
    print(f"{'total':{width}}  {every.total():8}  {test.total():4}  {every.total() - test.total():5}")
    print("See `--list`, `--prompts NAME`, `--check`, `--help`.")


def _prompts(concepts: tuple[Concept, ...], name: str) -> tuple[str, ...]:
    wanted = " ".join(name.lower().split())
    if wanted == GENERIC:
        return generic_scenes()
    for concept in concepts:
        if concept.name.lower() == wanted:
            return concept.prompts
    near = [c.name for c in concepts if set(wanted.split()) & set(c.name.lower().split())][:5]
    hint = f"did you mean {', '.join(near)}?" if near else "see --list."
    raise CommandError(f"There is no concept '{name}' among {len(concepts)}, expected one of their names: {hint}")


def _check(name: str, concepts: tuple[Concept, ...], split: ConceptSplit, target: str | None) -> int:
    count_tokens, how = token_counter()
    shipped = name in BUILTIN
    died = {w.name: w.died for w in concept_words() if w.category == "Individual Artists"} if shipped else {}
    found: dict[Problem, None] = {}
    for listed in [builtin_concepts(style) for style in BUILTIN] if shipped else [concepts]:
        problems = check(
            listed,
            [c.name for c in split.heldout],
            generic_scenes(),
            died=died,
            shape=CATEGORIES if shipped else None,
            prompts_per_class=PROMPTS_PER_CLASS if shipped else 0,
            count_tokens=count_tokens,
        )
        found.update(dict.fromkeys(problems))
    for problem in found:
        print(problem, file=sys.stderr)
    numbers = {
        "classes": len(concepts) + 1,  # the generic one
        "prompts_per_class": min(len(c.prompts) for c in concepts),
        "test": len(split.heldout),
        "train": len(split.train) + len(split.validation),
        "problems": len(found),
    }
    print(f"Tokens were {how}.", file=sys.stderr)
    if target:
        write_numbers(target, numbers)
    else:
        print(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in numbers.items()))
    return 1 if found else 0
