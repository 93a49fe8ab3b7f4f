"""Pages as a browser shows them: they play, and nothing leaves the window or lies on another."""

import shutil
from types import SimpleNamespace

import pytest

from ldlm_jax.evals.report import report
from ldlm_jax.puzzles.registry import TASKS
from ldlm_jax.sampling.candidates import Draft, Sample
from ldlm_jax.sampling.page import denoising_page

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

NOISE = set("░▒▓")
# What the page shows before its first tick: the listener runs right after the page's script.
FIRST = """
document.addEventListener("DOMContentLoaded", () => {
  window.first = [...document.querySelectorAll("#panels p")].map((p) => p.textContent).join("");
});
"""
# Visible boxes that leave the window, and pairs of siblings that lie on one another.
BOXES = """
const seen = (e) => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
const name = (e) => `${e.tagName}#${e.id}.${e.className} ${e.textContent.slice(0, 20)}`;
const all = [...document.body.querySelectorAll("*")].filter(seen)
  .filter((e) => !e.closest("svg") || e.tagName === "svg");
const out = all.filter((e) => {
  const r = e.getBoundingClientRect();
  return r.left < -0.5 || r.right > document.documentElement.clientWidth + 0.5;
}).map(name);
const pairs = [];
for (const parent of [document.body, ...all]) {
  if (getComputedStyle(parent).display === "inline" || parent.tagName === "P") continue;
  const inside = [...parent.children].filter(seen);
  for (const [i, a] of inside.entries()) for (const b of inside.slice(i + 1)) {
    const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
    const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (wide > 1 && high > 1) pairs.push([name(a), name(b)]);
  }
}
return {out, pairs, wider: document.documentElement.scrollWidth - innerWidth};
"""


@pytest.fixture(scope="module")
def browser():
    chrome = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    driver = shutil.which("chromedriver")
    if not chrome or not driver:
        pytest.skip("no chromium or no chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=driver)
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": FIRST})
        yield browser


def at_width(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def well_placed(browser):
    found = browser.execute_script(BOXES)
    assert found == {"out": [], "pairs": [], "wider": found["wider"]}
    assert found["wider"] <= 0


def shown(browser):
    """The text of the paragraphs that can be seen, without blanks."""
    found = browser.find_elements(By.CSS_SELECTOR, "#panels section:not([hidden]) p")
    return ["".join(p.get_property("textContent").split()) for p in found]


def move(browser, key):
    browser.find_element(By.ID, "at").send_keys(key)


def noisy(text):
    return sum(letter in NOISE for letter in text) / max(1, len(text))


TEXT = (
    "In the beginning the king of the east spoke to all the people of the great city and said unto "
    "them hear the word"
)


def page_of(words, given, grid=None, block=0):
    """A page of two texts at 3 and 10 steps, of which each step knows more."""
    vocabulary = sorted(set(words))
    tokenizer = SimpleNamespace(bytes_of=lambda token: vocabulary[token].encode())
    generator = SimpleNamespace(
        tokenizer=tokenizer, window=len(words), diffusion=SimpleNamespace(block_size=block),
        networks=SimpleNamespace(vae=SimpleNamespace(tokens_per_latent=1)),
    )  # fmt: skip
    final, wrong = [vocabulary.index(word) for word in words], [0] * len(words)

    def sample(steps):
        drafts = [
            Draft("", final if k > steps // 2 else wrong, [k / steps] * len(words))
            for k in range(1, steps + 1)
        ]
        return Sample("", "", final, given, steps, drafts, cut=steps == 10)

    return denoising_page(generator, {k: [sample(k), sample(k)] for k in (3, 10)}, grid)


@pytest.fixture(scope="module", params=["text", "one long word", "grid"])
def page(request, tmp_path_factory):
    """A page, and the text that stands on it in the end."""
    words, grid = [f" {word}" for word in TEXT.split()], None
    if request.param == "one long word":
        words = ["unbreakable"] * 40
    if request.param == "grid":
        words, grid = list("123456456123234561561234345612612345"), TASKS["sudoku6"]
    given = [i < 2 for i in range(len(words))]
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page_of(words, given, grid), encoding="utf-8")
    return file.as_uri(), "".join("".join(words).split())


@pytest.mark.parametrize("width", [390, 1300])
def test_a_page_opens_on_noise_plays_and_stays_in_its_window(browser, page, width):
    address, final = page
    at_width(browser, width)
    browser.get(address)
    assert noisy("".join(browser.execute_script("return window.first").split())) > 0.6
    assert len(shown(browser)) == 2  # one panel of the two
    slider = browser.find_element(By.ID, "at")
    moved = int(slider.get_property("value"))
    WebDriverWait(browser, 20).until(lambda _: int(slider.get_property("value")) > moved + 50)
    assert browser.find_element(By.ID, "play").text == "Stop"
    # The slider stops it, and shows what is asked for: nothing, half, and all.
    move(browser, Keys.END)
    assert browser.find_element(By.ID, "play").text == "Play"
    assert shown(browser) == [final, final]
    assert browser.find_element(By.ID, "panels").text.count("the text would go on") == 2
    well_placed(browser)
    move(browser, Keys.HOME)
    begun = shown(browser)
    assert all(noisy(text) > 0.8 for text in begun) and len(begun[0]) == len(final)
    well_placed(browser)
    for button in browser.find_elements(By.CSS_SELECTOR, "#choice button[aria-pressed=false]"):
        button.click()
    assert len(shown(browser)) == 4
    browser.find_element(By.ID, "play").click()
    WebDriverWait(browser, 20).until(lambda _: int(slider.get_property("value")) > 550)
    browser.find_element(By.ID, "play").click()
    middle = shown(browser)
    assert middle[2] not in (begun[0], final)
    well_placed(browser)


@pytest.mark.parametrize("width", [390, 700, 1300])
def test_a_report_stays_in_its_window(browser, tmp_path, width):
    pytest.importorskip("matplotlib")
    measures = ("mauve", "mauve_deviation", "perplexity", "perplexity_without_repeats",
                "token_entropy", "distinct_1", "distinct_2", "distinct_3", "seq_rep_4",
                "loop_rate", "self_bleu", "copied_longest", "copied_8", "tokens", "words",
                "length_distance", "entropy")  # fmt: skip
    sets = ("held_out", "other_held_out", "trained_on", "shuffled", "decoded", "midpoints",
            *(f"{name}_steps_{steps}" for steps in (5, 20, 100)
              for name in ("unconditional", "continuation_0.25", "continuation_0.5")))  # fmt: skip
    results = {f"quality/{s}/{m}": 0.0012345 * i for s in sets for i, m in enumerate(measures, 1)}
    results |= {f"quality/{s}/texts": "- He spoke.\n- " + "a" * 200 for s in sets}
    file = tmp_path / "report.html"
    record = {"workdir": "runs/" + "long" * 30, "seed": 0, "num_samples": 64, "results": results}
    file.write_text(report(record), encoding="utf-8")
    at_width(browser, width)
    browser.get(file.as_uri())
    well_placed(browser)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1300])
def test_a_server_writes_what_was_typed(browser, served, width):
    at_width(browser, width)
    browser.get(served)
    well_placed(browser)
    prompt = browser.find_element(By.NAME, "prompt")
    prompt.send_keys("The king")
    steps = browser.find_element(By.NAME, "steps")
    steps.clear()
    steps.send_keys("4", Keys.ENTER)
    wait = WebDriverWait(browser, 300)
    wait.until(lambda _: shown(browser))
    move(browser, Keys.END)
    (text,) = shown(browser)
    assert text.startswith("Theking") and not noisy(text)
    well_placed(browser)
    prompt.clear()
    prompt.send_keys("x" * 200, Keys.ENTER)
    trouble = browser.find_element(By.ID, "trouble")
    wait.until(lambda _: "window" in trouble.text)
    well_placed(browser)


@pytest.fixture(scope="module")
def served():
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    from ldlm_jax import load  # noqa: PLC0415
    from ldlm_jax.serving.server import ServerConfig  # noqa: PLC0415
    from tests.test_server import LIMITS, TRAINED, running  # noqa: PLC0415

    with running(load(TRAINED).run, ServerConfig("tiny", LIMITS, timeout=600)) as (address, _):
        yield address
