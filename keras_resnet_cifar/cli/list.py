"""The command `list`."""

import argparse
import json
from dataclasses import asdict

from keras_resnet_cifar.cli import options
from keras_resnet_cifar.data.datasets import DATASETS
from keras_resnet_cifar.models.architectures import RULE, list_architectures
from keras_resnet_cifar.models.weights import list_weights
from keras_resnet_cifar.training.recipes import RECIPES


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the option of `list`."""
    options.add(parser, "--json", bool, "print JSON")


def run(args: argparse.Namespace) -> None:
    """List architectures, recipes, datasets and trained weights."""
    nets = list_architectures()
    recipes = [asdict(recipe) for recipe in RECIPES.values()]
    datasets = [
        {"name": d.name, "classes": d.num_classes, "summary": d.summary}
        for d in DATASETS.values()
    ]
    if args.json:
        tables = {"architectures": nets, "recipes": recipes}
        tables |= {"datasets": datasets, "weights": list_weights()}
        print(json.dumps(tables, indent=2))
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
    print("weights:")
    for row in list_weights():
        print(
            f"  {row['name']:<24}{row['arch']} on {row['dataset']}: top-1 "
            f"{row['top1']:.2%}, {row['recipe']}, {row['licence']}\n"
            f"  {'':<24}{row['where']}"
        )
