"""The command `list`."""

import argparse
import json
from dataclasses import asdict

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.models.architectures import RULE, list_architectures
from keras_resnet_cifar.training.recipes import RECIPES


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the option of `list`."""
    options.add(parser, "--json", bool, "print JSON")


def run(args: argparse.Namespace) -> None:
    """List architectures, recipes and datasets."""
    nets = list_architectures()
    recipes = [asdict(recipe) for recipe in RECIPES.values()]
    datasets = [
        {"name": d.name, "classes": d.num_classes, "summary": d.summary}
        for d in DATASETS.values()
    ]
    if args.json:
        tables = {"architectures": nets, "recipes": recipes}
        print(json.dumps(tables | {"datasets": datasets}, indent=2))
        return
    print(f"architectures, by the rule {RULE}:")
    for row in nets:
        print(
            f"  {row['name']:<30}{row['depth']:>5}  {row['block']:<11}"
            f"{row['parameters']:>11,}  {row['source']}"
        )
    print("recipes:")
    for row in recipes:
        print(
            f"  {row['name']:<24}{row['arch']} on {row['dataset']}, "
            f"{row['epochs']} epochs; {row['expected']}\n"
            f"  {'':<24}{row['source']}"
        )
    print("datasets:")
    for row in datasets:
        print(f"  {row['name']:<24}{row['classes']} classes: {row['summary']}")
