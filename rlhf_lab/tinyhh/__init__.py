"""tinyhh: a miniature helpful/harmless world whose true rewards are known.

`knowledge.toml` is the world, written by hand; `knowledge` reads it; `generator` writes prompts, responses, preference
pairs and pre-training text from a seed; `gold` knows how good any response truly is; `annotators` are simulated people
who see the gold rewards through noise and bias. docs/tinyhh_datasheet.md describes it all.
"""
