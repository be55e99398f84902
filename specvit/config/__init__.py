"""Configuration: schema, composition by Hydra, the strict builder, rules that span keys, suggestions for typos."""
