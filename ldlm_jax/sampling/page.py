"""A self-contained page on which text sharpens from noise, step by step."""

import json
from collections.abc import Mapping, Sequence

from ldlm_jax.sampling.generate import Sample, Writer

_HEAD = """<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1"><title>Text out of noise</title>
<style>
body{font:16px/1.6 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem;color:#222}
.bar{position:sticky;top:0;background:#fff;padding:.6rem 0;display:flex;gap:1rem;align-items:center}
.bar input[type=range]{flex:1}button{font:inherit;padding:.2rem 1rem}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:2rem}
h2{font-size:1rem;margin:1rem 0 .3rem}p{margin:.3rem 0 1rem;white-space:pre-wrap}
.given{font-weight:600}.changed{outline:2px solid #d40;border-radius:3px}.unwritten{color:#bbb}
.how{color:#666;font-size:.9rem}
</style><h1>Text out of noise</h1>
<p class=how>Given text is bold. The fainter a word, the less probable it is to the model at that
step; a frame marks what the last step changed. The slider runs from noise to the finished text in
every panel, whatever its number of steps.</p>
<div class=bar><button id=play>Play</button><input id=at type=range min=0 max=1000 value=0>
<span id=say></span></div><div class=panels id=panels></div>
<script>
const DATA = """

_TAIL = """;
const bar = document.getElementById("at"), play = document.getElementById("play");
const shown = [];
for (const panel of DATA.panels) {
  const box = document.createElement("section");
  const title = document.createElement("h2");
  title.textContent = `${panel.steps} steps`;
  box.append(title);
  for (const text of panel.texts) {
    const p = document.createElement("p"), how = document.createElement("div");
    how.className = "how";
    how.textContent = `${text.evaluations} evaluations`;
    box.append(how, p);
    // A frame is a block and a step in it; what is given whole takes none.
    const frames = [], blocks = Math.ceil(text.final.length / DATA.block);
    for (let b = 0; b < blocks; b++) {
      const given = text.given.slice(b * DATA.block, (b + 1) * DATA.block);
      if (given.every(Boolean)) continue;
      for (let k = 0; k < text.steps.length; k++) frames.push([b, k]);
    }
    shown.push({p, text, frames});
  }
  document.getElementById("panels").append(box);
}
function token(text, [b, k], i) {
  const own = Math.floor(i / DATA.block);
  if (text.given[i] || own < b) return [text.final[i], 1];
  if (own > b) return [null, 0];
  const step = text.steps[k];
  return i < step[0].length ? [step[0][i], step[1][i]] : [-1, 1];
}
function draw() {
  const share = bar.value / 1000;
  for (const {p, text, frames} of shown) {
    p.replaceChildren();
    const at = Math.min(Math.floor(share * frames.length), frames.length - 1);
    const done = share === 1 || !frames.length;
    for (let i = 0; i < text.final.length; i++) {
      const [id, sure] = done ? [text.final[i], 1] : token(text, frames[at], i);
      const before = at > 0 && !done ? token(text, frames[at - 1], i)[0] : id;
      const span = document.createElement("span");
      span.textContent = id === null ? "\\u2591" : id < 0 ? "" : DATA.words[id];
      span.style.opacity = id === null ? 1 : 0.15 + 0.85 * sure;
      if (text.given[i]) span.className = "given";
      else if (id === null) span.className = "unwritten";
      else if (before !== id) span.className = "changed";
      p.append(span);
    }
  }
  document.getElementById("say").textContent = `${Math.round(100 * share)} %`;
}
let timer = null;
function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
play.onclick = () => {
  if (timer) return stop();
  if (bar.value >= 1000) bar.value = 0;
  play.textContent = "Stop";
  timer = setInterval(() => {
    bar.value = Number(bar.value) + 4;
    draw();
    if (bar.value >= 1000) stop();
  }, 60);
};
bar.oninput = draw;
draw();
</script></html>
"""


def denoising_page(writer: Writer, panels: Mapping[int, Sequence[Sample]]) -> str:
    """The page: a panel for each number of steps, a slider and a play button for all.

    Args:
      writer: the model that wrote.
      panels: samples with their drafts, by number of steps.
    """
    words: dict[int, str] = {}

    def note(ids: Sequence[int]) -> list[int]:
        for i in ids:
            if i not in words:
                words[i] = writer.tokenizer.bytes_of(i).decode("utf-8", "replace")
        return list(ids)

    data = {
        "block": writer.diffusion.block_size * writer.models.vae.tokens_per_latent or writer.window,
        "panels": [
            {
                "steps": steps,
                "texts": [
                    {
                        "final": note(sample.tokens),
                        "given": sample.given,
                        "evaluations": sample.evaluations,
                        "steps": [[note(d.tokens), d.confidence] for d in sample.drafts],
                    }
                    for sample in samples
                ],
            }
            for steps, samples in panels.items()
        ],
        "words": words,
    }
    # "</" would end the script.
    return _HEAD + json.dumps(data).replace("</", "<\\/") + _TAIL
