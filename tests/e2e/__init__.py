"""End to end: real models, the real Scaphandre, and spans found in the real Jaeger."""
