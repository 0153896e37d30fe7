"""Inference microservice for recurrent networks: HTTP in, outputs and final states out."""
