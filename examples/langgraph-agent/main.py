"""An agent of three steps that loops until its answer is short enough; energy per step; the one line before."""

import os
from typing import TypedDict

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_llm_energy

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
energy = otel_llm_energy.instrument(clients=["openai"])  # not langchain: its spans would not lie below the steps

tracer = trace.get_tracer("example")
model = ChatOpenAI(model=os.environ.get("MODEL", "smollm2-135m"), max_tokens=40, temperature=0)


class State(TypedDict):
    """What the steps hand on."""

    question: str
    plan: str
    draft: str
    rounds: int


def ask(step: str, text: str) -> str:
    """One call of the model, below a span that names the step."""
    with tracer.start_as_current_span(step):
        return str(model.invoke(text).content)


def plan(state: State) -> dict[str, object]:
    return {"plan": ask("plan", f"Name one point to answer: {state['question']}"), "rounds": 0}


def write(state: State) -> dict[str, object]:
    draft = ask("write", f"{state['question']} Consider: {state['plan']}")
    return {"draft": draft, "rounds": state["rounds"] + 1}


def shorten(state: State) -> dict[str, object]:
    return {"plan": ask("shorten", f"Say it in five words: {state['draft']}")}


graph = StateGraph(State)
graph.add_node("plan", plan)
graph.add_node("write", write)
graph.add_node("shorten", shorten)
graph.add_edge(START, "plan")
graph.add_edge("plan", "write")
graph.add_conditional_edges("write", lambda state: "shorten" if state["rounds"] < 2 else END)
graph.add_edge("shorten", "write")

with otel_llm_energy.conversation("example"), tracer.start_as_current_span("agent"):
    print(graph.compile().invoke({"question": "Why is the sky blue?"})["draft"])

energy.force_flush()
