// Run once when the page is open. What HTML attributes call are properties of `window`.
// While the dial moves, photo and picture are mixed here; `restStrength` returns what the server needs to make
// the true picture, once the dial has not moved for a while.
let strength = 1, moved = 0;
window.showStrength = value => {
  strength = value;
  moved = Date.now();
  document.querySelectorAll('.compare').forEach(figure => {
    figure.classList.add('mixed');
    figure.style.setProperty('--strength', value);
  });
  document.querySelectorAll('.compare .strength').forEach(text => { text.textContent = value; });
};
const REST = 300;  // milliseconds
window.restStrength = async place => {
  await new Promise(done => setTimeout(done, REST));
  while (Date.now() - moved < REST) await new Promise(done => setTimeout(done, REST));
  return [null, place, strength];
};

window.save = file => {
  if (!file) return;
  const link = document.createElement('a');
  link.href = file.url;
  link.download = file.orig_name;
  link.click();
};

// Tiles are seen whose names have the words, and are among those of the kind if one is chosen.
let words = '', kind = [];
const spaced = text => text.trim().toLowerCase().replaceAll('-', ' ');
const hideTiles = () => document.querySelectorAll('.effects label').forEach(tile => {
  const name = tile.textContent.trim();
  tile.hidden = !spaced(name).includes(words) || (kind.length > 0 && !kind.includes(name));
});
window.searchEffects = text => { words = spaced(text); hideTiles(); };
window.chooseKind = names => { kind = names; hideTiles(); };

// A click on the effect that is chosen already changes nothing, and makes a picture all the same.
let changed = false;
document.addEventListener('change', event => {
  if (event.target.matches('.effects input')) changed = true;
}, true);
document.addEventListener('click', event => {
  if (!event.target.matches('.effects input')) return;
  setTimeout(() => {
    if (!changed) document.querySelector('button.generate').click();
    changed = false;
  });
}, true);

// What Gradio leaves out: radio buttons of a group share no name, so that arrow keys do not move among them,
// and a screen reader is told neither group nor status nor what an empty place is.
const complete = () => {
  document.querySelectorAll('fieldset').forEach(group => {
    const label = group.querySelector('[data-testid="block-info"]');
    group.setAttribute('role', 'radiogroup');
    if (label) group.setAttribute('aria-label', label.textContent.trim());
    const radios = group.querySelectorAll('input[type=radio]');
    radios.forEach(radio => { if (radio.name !== radios[0].name) radio.name = radios[0].name; });
  });
  document.querySelectorAll('.examples img').forEach(image => { if (image.alt) image.alt = ''; });
  document.querySelectorAll('.empty[aria-label]').forEach(place => place.setAttribute('role', 'img'));
  document.querySelectorAll('.prose.status').forEach(line => line.setAttribute('role', 'status'));
};
complete();
new MutationObserver(complete).observe(document.body, {childList: true, subtree: true});
