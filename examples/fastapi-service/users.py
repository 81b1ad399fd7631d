"""Four users at once, two requests each."""

import os
from concurrent.futures import ThreadPoolExecutor

import requests

URL = os.environ.get("SERVICE", "http://localhost:8000")
ANIMALS = ("fox", "hen", "owl", "cat", "dog", "bee", "ant", "cow")

with ThreadPoolExecutor(4) as users:
    for answer in users.map(lambda animal: requests.get(f"{URL}/tale/{animal}", timeout=120), ANIMALS):
        answer.raise_for_status()
        print(answer.json()["tale"][:70])
