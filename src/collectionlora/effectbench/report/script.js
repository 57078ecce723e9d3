"use strict";
// The viewer: a picture large, with another one of its row over its left part.
const viewer = document.getElementById("viewer");
const [title, note] = [viewer.querySelector("strong"), viewer.querySelector("p > span")];
const pair = viewer.querySelector(".pair");
const [after, before] = pair.querySelectorAll("img");
const slider = viewer.querySelector("input");
const choice = viewer.querySelector("select");

function moveTo(share) {
  slider.value = share;
  pair.style.setProperty("--at", slider.value + "%");
}

function open(image) {
  const row = image.closest(".row");
  const others = [...row.querySelectorAll("img")].filter((other) => other !== image);
  choice.replaceChildren(...others.map((other) => new Option(other.dataset.name)));
  choice.onchange = () => { before.src = others[choice.selectedIndex].src; };
  after.src = image.src;
  choice.onchange();
  title.textContent = row.dataset.effect;
  note.textContent = "right: " + image.dataset.name;
  moveTo(50);
  viewer.showModal();
  slider.focus();
}

for (const button of document.querySelectorAll(".row button")) {
  const image = button.firstElementChild;
  button.addEventListener("click", () => open(image));
}
slider.addEventListener("input", () => moveTo(slider.value));
pair.addEventListener("pointermove", (event) => {
  if (event.pointerType === "mouse" || event.buttons) {
    const box = pair.getBoundingClientRect();
    moveTo(100 * (event.clientX - box.left) / box.width);
  }
});
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

// The values of all runs at the step under the pointer.
for (const chart of document.querySelectorAll(".curve svg")) {
  const lines = [...chart.querySelectorAll("polyline")];
  const points = lines.map((line) => JSON.parse(line.dataset.points));
  const cursor = chart.querySelector(".cursor");
  const output = chart.parentElement.querySelector("output");
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    const nearest = points.map((of) => of.reduce((a, b) => Math.abs(a[0] - x) <= Math.abs(b[0] - x) ? a : b));
    output.textContent = nearest.map((p, i) => `${lines[i].dataset.name}: ${p[3]} at step ${p[2]}`).join("; ");
    cursor.setAttribute("x1", nearest[0][0]);
    cursor.setAttribute("x2", nearest[0][0]);
    cursor.removeAttribute("hidden");
  });
  chart.addEventListener("pointerleave", () => {
    output.textContent = "";
    cursor.setAttribute("hidden", "");
  });
}

// On paper nothing can be unfolded; afterwards it is as the reader left it.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("section details:not([open])")];
  for (const folded of opened) folded.open = true;
});
addEventListener("afterprint", () => {
  for (const folded of opened) folded.open = false;
});
