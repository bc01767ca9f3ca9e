// What Streamlit 1.24 leaves undone: names for its buttons, the page's language, input methods, copying.
"use strict";

// Enter that ends a Chinese input method's word is not Enter that sends.
addEventListener("keydown", event => {
  if (event.target.matches?.("textarea") && (event.isComposing || event.keyCode === 229)) event.stopPropagation();
}, true);

addEventListener("click", async event => {
  const button = event.target.closest?.("button.copy");
  if (!button) return;
  const lines = [...document.querySelectorAll(".turn")].map(turn =>
    [turn.querySelector(".asked span").innerText,
      ...[...turn.querySelectorAll(".pane")].map(pane =>
        pane.querySelector(".said").getAttribute("aria-label") + ": " + pane.querySelector(".said").innerText)].join("\n\n"));
  const said = button.parentElement.querySelector(".copied");
  if (await copy(lines.join("\n\n---\n\n"))) said.textContent = document.querySelector("#page").dataset.copied;
  setTimeout(() => { said.textContent = ""; }, 4000);
});

async function copy(text) {
  try { // only where the browser takes the address for a safe one: localhost is, plain http is not
    await navigator.clipboard.writeText(text);
    return true;
  } catch (_) {
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function mend() {
  const page = document.querySelector("#page");
  if (!page) return;
  set(document.documentElement, "lang", page.lang);
  if (document.title !== page.dataset.title) document.title = page.dataset.title;
  for (const button of document.querySelectorAll(".stChatInputContainer button")) set(button, "aria-label", page.dataset.send);
  for (const [step, word] of [[".step-down", page.dataset.less], [".step-up", page.dataset.more]])
    for (const button of document.querySelectorAll(step))
      set(button, "aria-label", button.closest(".stNumberInput").querySelector("label").innerText + ": " + word);
  for (const frame of document.querySelectorAll("iframe")) set(frame, "tabindex", "0");
  const main = document.querySelector("section.main");
  if (main) set(main, "role", "main");
}

// The run's page, while it is looked at.
let waited = 0;
setInterval(() => {
  const live = document.querySelector("#live");
  waited = live && !document.hidden ? waited + 1 : 0;
  if (!live || waited < live.dataset.seconds) return;
  waited = 0;
  [...document.querySelectorAll(".stButton button")].pop()?.click();
}, 1000);

function set(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

new MutationObserver(mend).observe(document.documentElement, { subtree: true, childList: true, attributes: true });
