"""An app without the one line."""

from app import ask_as_agent
from opentelemetry import trace

ask_as_agent(trace.get_tracer("app"))
