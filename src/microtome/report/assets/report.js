/* Draws the figures over their static pictures, copies Python, follows light and dark. Data becomes text, never markup. */
(function () {
  "use strict";
  var root = document.documentElement;
  root.classList.add("js");
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  // the inks and series of microtome.figures.colours, for a dark page
  var DARK = {
    "#20242a": "#e7e9ec", "#6b7280": "#9aa3af", "#e3e5e8": "#333941", "#d5d8dd": "#3c434d",
    "#0a74a8": "#55b0e3", "#cf7a28": "#e59a50",
    "#8c164f": "#f08ab8", "#7f39ee": "#b79bff",
    "#5a4310": "#d0b070", "#02b08e": "#43d0b0",
    "#96764a": "#c8a878", "#1a3b95": "#8fa8f0",
  };
  var CONFIG = {
    responsive: true,
    displaylogo: false,
    scrollZoom: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  };

  function read(figure) {
    var text = figure.querySelector("script.plot-data").textContent;
    if (dark.matches) {
      Object.keys(DARK).forEach(function (ink) {
        text = text.split('"' + ink + '"').join('"' + DARK[ink] + '"');
      });
    }
    return JSON.parse(text);
  }

  function draw(figure) {
    var plot = figure.querySelector(".plot");
    var stage = plot.querySelector(".live");
    if (!stage) {
      stage = document.createElement("div");
      stage.className = "live";
      stage.setAttribute("role", "img");
      stage.setAttribute("aria-label", plot.dataset.title);
      plot.appendChild(stage);
    }
    var content = read(figure);
    return window.Plotly.react(stage, content.data, content.layout, CONFIG).then(
      function () {
        plot.classList.add("drawn");
      },
      function (error) {
        stage.remove();
        console.error("figure " + figure.id + " stays static: " + error);
      }
    );
  }

  function visible(figure) {
    var fold = figure.parentElement.closest("details");
    return !fold || fold.open;
  }

  function drawAll(figures) {
    var queue = Array.prototype.slice.call(figures).filter(visible);
    function next() {
      var figure = queue.shift();
      if (!figure) {
        root.dataset.drawn = String(document.querySelectorAll(".plot.drawn").length);
        return;
      }
      Promise.resolve(draw(figure)).then(function () {
        window.setTimeout(next, 0); // the page stays responsive between figures
      });
    }
    next();
  }

  function said(button, text) {
    button.parentElement.querySelector(".said").textContent = text;
  }

  function select(block) {
    var fold = block.closest("details");
    if (fold) fold.open = true;
    var range = document.createRange();
    range.selectNodeContents(block);
    var selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  }

  function copyOld(text) {
    var area = document.createElement("textarea");
    area.value = text;
    area.setAttribute("readonly", "");
    area.style.position = "fixed";
    area.style.top = "0";
    area.style.opacity = "0";
    document.body.appendChild(area);
    area.select();
    var done = false;
    try {
      done = document.execCommand("copy");
    } catch (error) {
      done = false;
    }
    area.remove();
    return done;
  }

  function copy(button) {
    var block = document.getElementById(button.dataset.for);
    var text = block.textContent;
    function old() {
      if (copyOld(text)) {
        said(button, "Copied");
        button.focus();
      } else {
        select(block);
        said(button, "Press Ctrl+C to copy");
      }
    }
    if (navigator.clipboard && window.isSecureContext) {
      navigator.clipboard.writeText(text).then(function () { said(button, "Copied"); }, old);
    } else {
      old();
    }
  }

  var withData = Array.prototype.filter.call(document.querySelectorAll("figure.fig"), function (figure) {
    return figure.querySelector("script.plot-data");
  });
  document.querySelectorAll("button.copy").forEach(function (button) {
    button.addEventListener("click", function () { copy(button); });
  });
  document.querySelectorAll("details.more").forEach(function (fold) {
    fold.addEventListener("toggle", function () {
      if (fold.open && window.Plotly) drawAll(withData.filter(function (figure) { return fold.contains(figure); }));
    });
  });
  if (window.Plotly) {
    drawAll(withData);
    dark.addEventListener("change", function () { drawAll(withData); });
  }
})();
