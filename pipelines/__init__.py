"""The stages, one module each with `run(recipe, settings) -> result`, and the `p2es` command."""
