"""Configuration: compose (Hydra), build (strict dataclasses), identity (run id), folder (run-folder protocol)."""
