document.querySelectorAll("[data-slices]").forEach(function (viewer) {
  var slider = viewer.querySelector("input"), label = viewer.querySelector("output");
  var frames = viewer.querySelectorAll("[data-slice]");
  function show() {
    frames.forEach(function (frame) { frame.hidden = frame.dataset.slice !== slider.value; });
    label.textContent = viewer.dataset.slices.split(",")[slider.value];
  }
  slider.addEventListener("input", show);
  slider.disabled = false;
  show();
});
