"""Preparation: loading model and data, and building the attacks of a suite for the model."""
