"""Retrieval and an answer: embeddings and chat from one local server, through LangChain; the one line before."""

import os

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_llm_energy

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
energy = otel_llm_energy.instrument()

FACTS = (
    "The ocean covers most of the planet and is salty.",
    "A fox hunts mice at night and sleeps by day.",
    "Bread rises because yeast makes gas in the dough.",
)
model = os.environ.get("MODEL", "smollm2-135m")
tracer = trace.get_tracer("example")

with tracer.start_as_current_span("index"):
    embeddings = OpenAIEmbeddings(model=model, check_embedding_ctx_length=False)
    index = dict(zip(FACTS, embeddings.embed_documents(list(FACTS)), strict=True))


def closest_fact(question: str) -> str:
    """What a vector store would find."""
    asked = embeddings.embed_query(question)
    return max(index, key=lambda fact: sum(one * other for one, other in zip(asked, index[fact], strict=True)))


prompt = ChatPromptTemplate.from_template("Answer from this: {fact}\nQuestion: {question}")
chain = (
    {"fact": closest_fact, "question": RunnablePassthrough()}
    | prompt
    | ChatOpenAI(model=model, max_tokens=40, temperature=0)
)
with tracer.start_as_current_span("answer"):
    print(chain.invoke("When does a fox sleep?").content)

energy.force_flush()
