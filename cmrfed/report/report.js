"use strict";
(() => {
  const tip = document.getElementById("tip");
  const show = (event) => {
    const words = event.target.dataset && event.target.dataset.tip;
    tip.hidden = !words;
    if (!words) return;
    tip.textContent = words;
    const margin = 12;
    const left = Math.min(event.clientX + margin, window.innerWidth - tip.offsetWidth - margin);
    const above = event.clientY - tip.offsetHeight - margin;
    tip.style.left = `${Math.max(margin, left)}px`;
    tip.style.top = `${above > 0 ? above : event.clientY + 2 * margin}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  const fallback = (source) => {
    const range = document.createRange();
    range.selectNodeContents(source);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  };
  const copy = async (source) => {
    if (!navigator.clipboard) return fallback(source);
    try {
      await navigator.clipboard.writeText(source.textContent);
      return true;
    } catch {
      return fallback(source);
    }
  };
  for (const button of document.querySelectorAll("button[data-copy]")) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      const done = await copy(document.getElementById(button.dataset.copy));
      button.textContent = done ? "Copied" : "Select and copy by hand";
      setTimeout(() => { button.textContent = label; }, 2000);
    });
  }
})();
