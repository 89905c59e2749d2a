"""Adapters: small modules beside a model's layers."""
