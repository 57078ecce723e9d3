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
  // Enlarged by whole pixels, small pictures show what the network made.
  const mark = () => image.classList.toggle("coarse", image.naturalWidth < 128);
  image.complete ? mark() : image.addEventListener("load", mark);
}
for (const image of [after, before]) {
  image.addEventListener("load", () => image.classList.toggle("coarse", image.naturalWidth < 256));
}
slider.addEventListener("input", () => moveTo(slider.value));
pair.addEventListener("pointermove", (event) => {
  if (event.pointerType === "mouse" || event.buttons) {
    const box = pair.getBoundingClientRect();
    moveTo(100 * (event.clientX - box.left) / box.width);
  }
});
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

// On paper nothing can be unfolded.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("section details")) folded.open = true;
});
