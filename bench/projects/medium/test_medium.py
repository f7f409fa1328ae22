import numpy as np
import pandas as pd
import requests


def test_sum():
    assert int(np.arange(10).sum()) == 45


def test_frame():
    assert pd.DataFrame({"a": [1, 2]})["a"].sum() == 3


def test_request():
    assert requests.Request("GET", "http://example.org/").prepare().url == "http://example.org/"
